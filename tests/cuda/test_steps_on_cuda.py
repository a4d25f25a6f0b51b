"""Laws of steps on a GPU: gradients by their definition, the law of every optimizer, the same bits again."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from optimizers import OF_EACH_KIND as OPTIMIZERS
from oracles import assert_close, loop_of_grads, without_dropout
from run_builders import contents

from devinterp_func import batches, graph, models, optim, per_example, records, text, training, tree, units
from devinterp_func.models import Config
from devinterp_func.records import RecordError, Recording
from devinterp_func.records._writer import writing
from devinterp_func.training import Recipe

pytestmark = pytest.mark.cuda
CORPUS = text.planted(key=0, n_tokens=3000)
V = len(CORPUS.vocab)
MODEL = models.transformer(Config(V, d_model=16, n_heads=2, d_hidden=12, n_layers=2))
RECIPE = Recipe(context=10, batch_size=6, n_steps=12, lr=0.05, max_norm=0.7)
RECORDING = Recording(k=20, factors=True, snapshot_every=4)
DATA = batches.chunk(CORPUS.train, RECIPE.context)
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def causal_lm(kind):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": V, "bos_token_id": None, "eos_token_id": None}
    if kind == "gpt2":
        own = transformers.GPT2Config(**sizes, n_embd=16, n_layer=2, n_head=2, n_positions=10)
    else:
        shared = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = {"neox": transformers.GPTNeoXConfig, "llama": transformers.LlamaConfig}[kind]
        own = config(**sizes, **shared, max_position_embeddings=10)
    return models.causal_lm(own)


def placed(model, device, dtype):
    """Weights, the graph and a batch on a device."""
    params = tree.map(lambda w: w.to(device, dtype), model.init(3))
    example = tree.map(lambda x: x.to(device), batches.example(DATA, 0))
    batch = tree.map(lambda x: x[:5].to(device), tuple(DATA))
    return graph.of(model.loss, params, *example), params, batch


@pytest.mark.parametrize("kind", ["post", "gpt2", "neox", "llama"])
def test_capture_is_the_definition_in_float64(cuda, kind):
    model = MODEL if kind == "post" else causal_lm(kind)
    traced, params, batch = placed(model, cuda, torch.float64)
    captured = per_example.capture(traced, params, *batch, units=units.EVERY)
    formed = per_example.gradients(captured.factors)
    expected = loop_of_grads(without_dropout(model.loss), params, *batch)
    for name, gradient in expected.items():
        torch.testing.assert_close(formed[name], gradient, rtol=1e-9, atol=1e-12)


def test_it_is_what_the_cpu_finds_in_float64(cuda):
    found = []
    for device in ("cpu", cuda):
        traced, params, batch = placed(MODEL, device, torch.float64)
        found.append(tree.map(torch.Tensor.cpu, per_example.capture(traced, params, *batch).mean_grads))
    assert_close(found[1], found[0], 1e-10)


@each_optimizer
def test_every_step_obeys_the_law(cuda, name):
    traced, params, _ = placed(MODEL, cuda, torch.float64)
    recipe = replace(RECIPE, optimizer=OPTIMIZERS[name], n_steps=5)
    for move in training.moves(traced, params, DATA, recipe, captured=units.EVERY):
        assert max(optim.missed(move).values()) < 1e-8, move


def steps(run, name, device):
    return records.record(run, CORPUS, MODEL, replace(RECIPE, optimizer=OPTIMIZERS[name]), RECORDING, device=device)


@each_optimizer
def test_a_run_is_the_same_again_resumed_and_replayed_bit_for_bit(cuda, name, tmp_path):
    for folder, stops in (("whole", (12,)), ("again", (12,)), ("resumed", (3, 5, 12))):
        for stop in stops:
            for now in steps(tmp_path / folder, name, cuda):
                if now.done == stop:
                    break
    whole = contents(tmp_path / "whole")
    assert whole == contents(tmp_path / "again") == contents(tmp_path / "resumed")
    run = records.open(tmp_path / "whole")
    assert records.verify(run).complete and len(list(run.moves())) == 12  # held against every snapshot
    assert records.same_bits(records.replay(run, 6).record, records.read(run, 6))
    card = run.manifest.get("card", {})
    assert (
        cuda == "cpu"
        or card["deterministic"]
        and card["precision"] == "highest"
        and card["name"] == torch.cuda.get_device_name()
    )


def test_its_records_are_close_to_the_cpus(cuda, tmp_path):
    for device in ("cpu", cuda):
        for _ in steps(tmp_path / device, "sgd", device):
            pass
    for here, there in zip(records.scan(tmp_path / "cpu"), records.scan(tmp_path / cuda), strict=True):
        torch.testing.assert_close(there.loss, here.loss, rtol=1e-4, atol=1e-5)
        assert torch.equal(there.datum, here.datum)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "abacus"}, r"the card's name .* here, 'abacus' there: replay it on such a card"),
        ({"deterministic": False}, r"deterministic True here, False there: call torch.use_deterministic_algorithms"),
        ({"workspace": ":16:8"}, r"workspace ':4096:8' here, ':16:8' there: set CUBLAS_WORKSPACE_CONFIG=:16:8"),
    ],
)
def test_another_card_is_refused_with_a_remedy(cuda, tmp_path, changed, said):
    if cuda == "cpu":
        pytest.skip("the CPU is no card")
    for _ in steps(tmp_path / "run", "sgd", cuda):
        pass
    run = records.open(tmp_path / "run")
    other = replace(run, manifest=run.manifest | {"card": run.manifest["card"] | changed})
    with pytest.raises(RecordError, match=said):
        next(other.moves())


def test_tensors_of_a_gpu_are_written_as_they_were_when_they_were_put(cuda):
    seen, x = [], torch.arange(2**22, device=cuda, dtype=torch.float32)
    with writing() as writer:
        for i in range(10):
            y = torch.sin(x) + i  # still in the making when it is put
            writer.put(lambda y, i: seen.append((i, y.device.type, y.clone())), {"y": y}["y"], i)
            del y
    for i, kind, y in seen:
        assert kind == "cpu" and torch.equal(y, (torch.sin(x) + i).cpu())
    assert [i for i, *_ in seen] == list(range(10))


KILLER = """
import os, signal, sys
import torch
torch.set_num_threads(1)
sys.path[:0] = sys.argv[1].split(os.pathsep)
from cuda_steps import steps
for now in steps(sys.argv[2], "adamw", sys.argv[4]):
    if now.done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_it_ends_with_the_same_tensors(cuda, tmp_path):
    for _ in steps(tmp_path / "whole", "adamw", cuda):
        pass
    paths = os.pathsep.join([str(tmp_path), *map(str, Path(__file__).parents[1:3])])
    (tmp_path / "cuda_steps.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    for stop in (4, 6, 9):
        done = subprocess.run(
            [sys.executable, "-c", KILLER, paths, str(tmp_path / "run"), str(stop), cuda], check=False
        )
        assert done.returncode == -signal.SIGKILL
    for _ in steps(tmp_path / "run", "adamw", cuda):
        pass
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
