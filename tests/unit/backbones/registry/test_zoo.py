"""timm knows our names after `import backbones`, which loads neither timm nor torch by itself."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from timm.models import get_pretrained_cfg

from backbones.registry.zoo import ZOO

ROOT = Path(__file__).parents[4]
PURE = (
    "backbones",
    "backbones.config",
    "backbones.registry.sizes",
    "backbones.visible.window_layout",
)


def fresh_process(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_pure_parts_load_neither_torch_nor_timm():
    imports = "; ".join(f"import {name}" for name in PURE)
    assert fresh_process(f"{imports}; import sys; print({{'torch', 'timm'}} & sys.modules.keys())") == "set()"


MAKE = """
x = importlib.util.find_spec("timm")
for name in ("secvit_tiny", "sec_swin_tiny", "sec_faster_vit_0", "xformer"):
    timm.create_model(name, num_classes=0)
print(len(timm.list_models("sec*")), get_pretrained_cfg("xformer").input_size)
"""


@pytest.mark.parametrize(
    "imports",
    [
        pytest.param("import backbones; import timm", id="before timm"),
        pytest.param("import timm; import backbones", id="after timm"),
        pytest.param("import backbones.ops.lean_mlp; import timm", id="by a module that imports timm itself"),
        pytest.param("import backbones.sec.stage; import timm", id="by a part of such a network"),
    ],
)
def test_timm_makes_our_networks_after_importing_backbones(imports):
    script = f"import importlib.util; {imports}; from timm.models import get_pretrained_cfg{MAKE}"
    assert fresh_process(script) == "9 (3, 256, 256)"


@pytest.mark.parametrize("module", ZOO)
def test_names_and_layers_are_those_of_the_module(module):
    names = ZOO[module].names
    if module.startswith("backbones.sec"):
        assert tuple(importlib.import_module(module).VARIANTS) == names
    for name in names if ZOO[module].ours else ():
        model, config = timm.create_model(name, num_classes=7), get_pretrained_cfg(name)
        assert model.pretrained_cfg["architecture"] == name
        assert model.get_submodule(config.first_conv).weight.shape[1] == 3
        assert model.get_submodule(config.classifier).weight.shape[0] == 7
