"""InfGen's nodes for ComfyUI. When ComfyUI starts, it calls `comfy_entrypoint`."""

from comfy_api.latest import ComfyExtension, io

from .nodes import InfGenDecode, InfGenLoad, InfGenPreview, InfGenSave

__all__ = ["comfy_entrypoint"]


class InfGenExtension(ComfyExtension):
    """The nodes of this folder."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [InfGenLoad, InfGenDecode, InfGenSave, InfGenPreview]


async def comfy_entrypoint() -> InfGenExtension:
    """Return the extension, as ComfyUI's V3 schema requires."""
    return InfGenExtension()
