"""What reaches around PEFT (dual_lora/tuner/registration.py), and what importing the package promises."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method
from torch import nn

import dual_lora
from dual_lora.tuner import registration
from tests import fresh_interpreters
from tests.fresh_interpreters import run_python

LOAD = """
import sys, torch
base = torch.nn.ModuleDict({"layer": torch.nn.Linear(4, 4)})
model = peft.PeftModel.from_pretrained(base, sys.argv[1])
print(type(model.base_model).__name__, type(model.base_model.model["layer"]).__name__)
"""
# Those with LOAD print the classes last.
PROGRAMS = {
    "import dual_lora, peft": f"""
import dual_lora, importlib.util
assert importlib.util.find_spec("peft") is not None
import peft
print("dual_lora.tuner" in sys.modules, "DUAL_LORA" in peft.PeftType.__members__)
{LOAD}""",
    "import peft, dual_lora": f"""
import peft
try: peft.PeftModel.from_pretrained(None, sys.argv[1])
except Exception as error: print("DUAL_LORA" in str(error))
import dual_lora
{LOAD}""",
    "import dual_lora.tuner, peft": f"import dual_lora.tuner, peft; print(*sys.modules){LOAD}",
    "import the Trainer": """
import dual_lora
from transformers import Trainer
print("peft" in sys.modules, "DUAL_LORA" in sys.modules["peft"].PeftType.__members__)
print(issubclass(dual_lora.DeltaWarmupCallback, sys.modules["transformers"].TrainerCallback))
""",
    "exec": "import dual_lora.commands; dual_lora.commands.main(['exec', f'{sys.argv[1]}/loads.py', sys.argv[1]])",
    # accelerate.utils has its DeepSpeed classes only where DeepSpeed is installed; here it always is.
    "without DeepSpeed": """
sys.modules["deepspeed"] = None
import dual_lora.methods.application
from accelerate.utils import is_deepspeed_available
print(bool(is_deepspeed_available()))
""",
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The words that each program prints; its argument is the folder of an adapter."""
    folder = tmp_path_factory.mktemp("adapter")
    model = get_peft_model(
        nn.ModuleDict({"layer": nn.Linear(4, 4)}), dual_lora.DualLoraConfig(target_modules=["layer"])
    )
    model.save_pretrained(folder)
    (folder / "loads.py").write_text(f"import peft{LOAD}print(len(sys.argv), sys.argv[0])")
    return {name: text.split() for name, text in fresh_interpreters.printed(PROGRAMS, folder).items()}


def test_peft_still_refuses_methods_outside_its_enum():
    """The day this fails, register with `register_peft_method` alone and drop `registration.peft_type`."""
    with pytest.raises(ValueError, match="Unknown PEFT type SOME_OTHER_METHOD"):
        register_peft_method(name="some_other_method", config_cls=LoraConfig, model_cls=BaseTuner)


def test_peft_still_assigns_the_weight_of_modules_without_one():
    """The day this fails (huggingface/peft issue 3114 mended), drop `ReplaceModuleWithoutWeight`."""

    class Tuner(BaseTuner):
        prefix = "none_"

        def __init__(self) -> None:
            nn.Module.__init__(self)

        def _create_and_replace(self, *arguments: object, **keywords: object) -> None:
            raise NotImplementedError

    parent = nn.ModuleDict({"head": nn.Sequential(nn.Linear(2, 2))})
    with pytest.raises(AttributeError, match="has no attribute 'weight'"):
        Tuner()._replace_module(parent, "head", parent["head"], parent["head"])


def test_the_enum_member_behaves_like_a_member():
    member = registration.peft_type()
    assert member is PeftType.DUAL_LORA is PeftType("DUAL_LORA") is PeftType["DUAL_LORA"]
    assert isinstance(member, PeftType)
    assert (member, member.value, member.name) == ("DUAL_LORA", "DUAL_LORA", "DUAL_LORA")
    assert list(PeftType).count(member) == 1
    assert registration.peft_type() is member


def test_registering_twice_is_harmless_and_a_foreign_claim_is_refused():
    registration.register(dual_lora.DualLoraConfig, dual_lora.DualLoraModel)
    with pytest.raises(KeyError, match="dual_lora"):
        registration.register(LoraConfig, dual_lora.DualLoraModel)


@pytest.mark.parametrize("imports", [name for name, program in PROGRAMS.items() if LOAD in program])
def test_import_dual_lora_alone_is_enough_to_load_an_adapter(imports, printed):
    assert printed[imports][-2:] == ["DualLoraModel", "DualLoraLinear"]


def test_exec_lets_a_program_without_a_word_of_dual_lora_load_one(printed):
    *loaded, words, name = printed["exec"]
    assert (loaded, words) == (["DualLoraModel", "DualLoraLinear"], "2")
    assert name.endswith("/loads.py")
    assert printed["import peft, dual_lora"][0] == "True", "the day PEFT finds it by itself, drop exec"


def test_importing_loads_nothing_until_peft_or_a_public_name_is_wanted(printed):
    loads = "import sys, dual_lora; print('torch' in sys.modules, 'peft' in sys.modules)"
    looks = "import importlib.util; importlib.util.find_spec('peft'); print('peft' in sys.modules)"  # as transformers
    assert run_python(f"{loads}; {looks}").split() == ["False", "False", "False"]
    assert printed["import dual_lora, peft"][:2] == ["True", "True"]


def test_it_registers_while_transformers_is_half_imported(printed):
    """Its Trainer imports PEFT, in the middle of modules that the warm-up's callback needs whole."""
    assert printed["import the Trainer"] == ["True", "True", "True"]


def test_using_the_adapter_loads_no_suite(printed):
    loaded = set(printed["import dual_lora.tuner, peft"])
    assert "dual_lora.kernels.linear" in loaded
    assert not loaded & {"hydra", "deepspeed", "wandb", "datasets"}
    # Where Triton is installed torch._dynamo imports it, whatever we do; our kernels wait for the first fused call.
    assert not any(name.startswith("dual_lora.kernels.triton") for name in loaded)


def test_the_adapter_needs_no_deepspeed(printed):
    assert printed["without DeepSpeed"] == ["False"]


def test_a_misspelt_name_says_which_names_there_are():
    with pytest.raises(AttributeError, match="DualLoraConfig"):
        dual_lora.DualLoraConfg  # noqa: B018


@pytest.mark.parametrize("folder", ["tuner", "kernels"])
def test_imports_point_down_only(folder):
    """tuner may import kernels; kernels imports nothing of ours."""
    allowed = {"tuner": ("dual_lora.tuner", "dual_lora.kernels"), "kernels": ("dual_lora.kernels",)}[folder]
    files = sorted((Path(dual_lora.__file__).parent / folder).glob("**/*.py"))
    assert len(files) >= 3
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file} imports relatively"
                names = [node.module or ""]
            for name in names:
                assert not name.startswith("dual_lora") or name.startswith(allowed), f"{file} imports {name}"
                assert not name.startswith("triton") or folder == "kernels", f"{file} imports {name}"


def test_adapters_follow_their_base_layer_to_its_device():
    """`_replace_module` is what moves them; the meta device stands for an accelerator here."""
    base = nn.ModuleDict({"layer": nn.Linear(4, 4, device="meta")})
    layer = get_peft_model(base, dual_lora.DualLoraConfig(target_modules=["layer"])).base_model.model["layer"]
    assert {factor.device for factor in layer.factors("default")} == {torch.device("meta")}
