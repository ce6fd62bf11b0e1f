"""The small graphs that move arrays on a device."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("infgen_runtimes")
