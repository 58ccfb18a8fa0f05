# Make an environment for the MONAI Deploy App SDK 4.0: sh install.sh PYTHON, from the root of n2s-med.
#
# Its Triton client asks for protobuf < 7; the versions that n2s-med is tested with have 7.
set -e
"$1" -m pip install --quiet torch==2.13.0 monai==1.6.1 monai-deploy-app-sdk==4.0.0 "protobuf<7" pytest -e .
