# Make an environment for MONAI Label 0.8.5: sh install.sh PYTHON, from the root of n2s-med.
#
# It asks for numpy < 2 (by numpymaxflow and pydicom-seg), and pydicom-seg for jsonschema < 4. Both stay as asked. What
# is left out is SAM-2, which builds against a torch of its own choice, and is for another app; and torchvision comes
# without its dependencies, which else would bring another torch. Made for CUDA, it cannot load its operators beside a
# torch without; none is used, and the file that describes them to torch's compiler is emptied there. pydicom-seg, which MONAI Label imports for DICOM SEG,
# looks for one UID in a module that pydicom 3 no longer has: a file of that name gives it.
set -e
"$1" -m pip install --quiet torch==2.13.0 monai==1.6.1 "numpy<2" pytest httpx -e .
"$1" -m pip install --quiet --requirement "$(dirname "$0")/requirements.txt"
"$1" -m pip install --quiet --no-deps monailabel==0.8.5 torchvision==0.28.0
site=$("$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "from pydicom.uid import SegmentationStorage" > "$site/pydicom/_storage_sopclass_uids.py"
"$1" -c "import torchvision" 2> /dev/null || : > "$site/torchvision/_meta_registrations.py"
