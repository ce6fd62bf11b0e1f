"""The viewer for Qt (PySide6): the widget `PictureView`, which apps embed, and the window of `infgen-rt view`.

from infgen_rt.qt import PictureView

view = PictureView()
view.set_picture(decoder.picture(latent, "16384x16384", max_scale=math.inf))
"""

from infgen_rt.qt.jobs import Job
from infgen_rt.qt.view import PictureView
from infgen_rt.qt.window import ViewerWindow

__all__ = ["Job", "PictureView", "ViewerWindow"]
