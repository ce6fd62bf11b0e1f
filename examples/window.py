"""Shows a picture of 16384 pixels in width in an app's own window. Only the visible part is decoded.

python examples/window.py
"""

from math import inf

from PySide6.QtWidgets import QApplication, QMainWindow

import infgen_rt
from infgen_rt.qt import PictureView

app = QApplication([])
with infgen_rt.open() as decoder:
    window, view = QMainWindow(), PictureView()
    view.set_picture(decoder.picture(infgen_rt.load_sample("colosseum").latent, "16384x", max_scale=inf))
    view.failed.connect(window.statusBar().showMessage)
    window.setCentralWidget(view)
    window.resize(1280, 800)
    window.show()
    app.exec()
    view.shut()
