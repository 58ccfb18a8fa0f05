"""What readers make of DICOM series, against what is in their files: the parts of ``dicom_table.py``."""
