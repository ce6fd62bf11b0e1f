"""OpenVINO's plug-ins, which it loads by name. On Linux, their names end with a version."""

from PyInstaller.utils.hooks import collect_data_files, collect_dynamic_libs

binaries = collect_dynamic_libs("openvino", search_patterns=["*.dll", "*.dylib", "lib*.so*"])
datas = collect_data_files("openvino", includes=["libs/*.xml", "libs/*.json"])
