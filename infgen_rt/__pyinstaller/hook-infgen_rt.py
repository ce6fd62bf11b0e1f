"""The model, samples and tables, the backends that are installed, and the metadata by which they are found."""

from PyInstaller.utils.hooks import collect_data_files, copy_metadata

from infgen_rt.__pyinstaller.parts import backends

hiddenimports = list(backends())
datas = collect_data_files("infgen_rt")
for distribution in sorted({"infgen-rt", *backends().values()}):
    datas += copy_metadata(distribution)
