"""Laws of models without weights: their graph, and all that is counted from it, is the real model's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from devinterp_func import graph, models, per_example, records
from devinterp_func.records import Recording
from devinterp_func.training import Recipe

transformers = pytest.importorskip("transformers")
C = 6
SHARED: dict[str, Any] = {"vocab_size": 31, "bos_token_id": None, "eos_token_id": None}
WIDE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
CONFIGS = {
    "gpt2": transformers.GPT2Config(**SHARED, n_embd=8, n_layer=1, n_head=2, n_positions=C),
    "neox": transformers.GPTNeoXConfig(**SHARED, **WIDE, max_position_embeddings=C),
    "llama": transformers.LlamaConfig(**SHARED, **WIDE, num_key_value_heads=1, max_position_embeddings=C),
}
PARAMETERS = {  # as their makers and model cards say
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "llama-7b": 6_738_415_616,
}


@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_counted_without_weights_is_what_is_counted_with_them(family):
    tokens, recipe = torch.zeros(C, dtype=torch.long), Recipe(C, 3)
    recording = Recording(20, factors=True)
    real, outlined = models.causal_lm(CONFIGS[family]), models.outline(CONFIGS[family])
    assert list(outlined.shapes.items()) == list(real.shapes.items())
    params = real.init(0)
    with_weights = graph.of(real.loss, params, tokens, tokens)
    without = graph.of(outlined.loss, outlined.init(0), tokens, tokens)
    assert graph.choose(without) == graph.choose(with_weights) and len(graph.choose(without)) in (4, 7)
    assert [repr(use) for use in without.uses] == [repr(use) for use in with_weights.uses]
    assert repr(without.head) == repr(with_weights.head) != "None"
    for measure in (records.step_bytes, records.memory):
        assert measure(without, recipe, recording) == measure(with_weights, recipe, recording)
    batch = torch.zeros(3, C, dtype=torch.long)
    captured = per_example.capture(with_weights, params, batch, batch, units=("*",)).factors
    for name, factor in per_example.outline(without, 3, ("*",)).items():
        assert repr(_shapes(factor)) == repr(_shapes(captured[name])), name


def _shapes(factor):
    """Shapes and dtypes of a factor's tensors, by field."""
    return {name: (x.dtype, x.shape) for name, x in records._record_step._tensors(factor).items()}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models_have_as_many_parameters_as_published(name):
    model = models.outline(name)
    assert sum(torch.Size(shape).numel() for shape in model.shapes.values()) == PARAMETERS[name]


def test_every_published_model_is_tried():
    assert models.PUBLISHED.keys() == PARAMETERS.keys() | {"gpt3"}


def test_a_config_is_read_from_its_file_or_folder(tmp_path):
    CONFIGS["llama"].save_pretrained(tmp_path)
    expected = models.causal_lm(CONFIGS["llama"]).shapes
    assert models.outline(tmp_path).shapes == models.outline(str(tmp_path / "config.json")).shapes == expected


def test_stand_ins_take_no_memory_and_hold_no_numbers():
    weights = models.outline("pythia-12b").init(0)
    assert sum(w.nbytes for w in weights.values()) > 4e10
    assert all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights.values())


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="there is no model 'gpt2-xxl': give gpt2, .*llama-7b, or the path of a config"
    ):
        models.outline("gpt2-xxl")
    with pytest.raises(TypeError, match="the model is a int; it must be a name, a path or a transformers config"):
        models.outline(3)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config.json: no config.json of a model that transformers knows"):
        models.outline(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match=r"config.json: ViTConfig is of no causal language model"):
        models.outline(Path(tmp_path, "config.json"))
    with pytest.raises(ValueError, match="the model's source is of kind 'outline'"):
        models.build(models.outline("gpt2").source)
