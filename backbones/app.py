"""The backbones program: which backbones there are, what they look at, and weights in and out."""

from engine.commands import Command, run_program
from engine.errors import one_line_errors

COMMANDS = {
    "list": Command(
        "list architectures that can be pretrained, with counted sizes",
        options="backbones.commands.config:List",
        run="backbones.commands.listing:run_list",
        usage="[PATTERN]",
    ),
    "show": Command(
        "describe an architecture, a backbone folder or a checkpoint file",
        options="backbones.commands.config:Show",
        run="backbones.commands.show:run_show",
        usage="WHAT",
    ),
    "clusters": Command(
        "draw what SecViT's tokens and a masked Swin's attend to, on an image",
        options="backbones.commands.config:DrawClusters",
        run="backbones.commands.drawing:run_clusters",
        usage="IMAGE",
    ),
    "import": Command(
        "make a backbone folder from anybody's checkpoint",
        options="backbones.commands.config:Import",
        run="backbones.commands.weights:run_import",
        usage="SOURCE OUT",
    ),
    "export": Command(
        "write weights as one file for another code base",
        options="backbones.commands.config:Export",
        run="backbones.commands.weights:run_export",
        usage="SOURCE OUT",
    ),
}


@one_line_errors
def main() -> None:
    """Run the command that the command line names."""
    run_program(COMMANDS, about=__doc__ or "")
