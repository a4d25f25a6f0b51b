"""Small transformers of the post's kind: their configs, weights and data, and the same composed of torch's modules."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from devinterp_func import keys, models, tree
from devinterp_func.models import Config
from devinterp_func.tree import Params

SMALL = Config(vocab_size=11, d_model=8, n_heads=2, d_hidden=6, n_layers=2, dropout=0.3)
CONFIGS = [
    SMALL,
    Config(vocab_size=7, d_model=6, n_heads=3, d_hidden=4, n_layers=3, dropout=0.5, positions="sin"),
    Config(vocab_size=3, d_model=5, n_heads=1, d_hidden=9, n_layers=1, dropout=0.1),
]
LEAST = Config(vocab_size=1, d_model=1, n_heads=1, d_hidden=1, n_layers=1, dropout=0.2, positions="sin")


def weights(config: Config, dtype: torch.dtype = torch.float64, seed: int = 0) -> Params:
    """Parameters of which none is zero, as biases are at the start, and no two layers alike."""
    start = models.init(config, key=seed, clone_layers=False)
    noise = {name: keys.uniform(w.shape, -0.2, 0.2, key=keys.fold_in(seed, "noise", name)) for name, w in start.items()}
    return tree.map(lambda w: w.to(dtype), tree.add(start, noise))


def batch(config: Config, n: int = 3, context: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens and targets of n data."""
    drawn = keys.generator(keys.fold_in(seed, "batch")).integers(0, config.vocab_size, (2, n, context))
    return torch.from_numpy(drawn[0]), torch.from_numpy(drawn[1])


def seeded(f: Callable[..., Any], *given: Any) -> Any:
    """What a function gives where torch's own generator starts at 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return f(*given)


class Pure(nn.Module):
    """A function as a module, as ``torch.export`` wants it."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Any) -> Tensor:
        return self.function(*given)


def exported(loss: Callable[..., Tensor], *given: Any) -> torch.export.ExportedProgram:
    """The graph of a function of trees of tensors."""
    return torch.export.export(Pure(loss), given, strict=False)


class TorchModel(nn.Module):
    """The word-language-model tutorial's transformer, batch first."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d = config.d_model
        block = nn.TransformerEncoderLayer(d, config.n_heads, config.d_hidden, config.dropout, batch_first=True)
        self.scale = math.sqrt(d)
        self.embedding = nn.Embedding(config.vocab_size, d)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.TransformerEncoder(block, config.n_layers, enable_nested_tensor=False)
        self.decoder = nn.Linear(d, config.vocab_size)
        self.positions = config.positions

    def forward(self, tokens: Tensor) -> Tensor:
        context = tokens.shape[1]
        x = self.embedding(tokens) * self.scale
        x = self.dropout(x + tutorial_positions(x.shape[-1], context, self.positions).to(x.dtype))
        causal = nn.Transformer.generate_square_subsequent_mask(context, dtype=x.dtype)
        return self.decoder(self.encoder(x, mask=causal))

    def units(self) -> Params:
        """The parameters under the names that ``nn.TransformerEncoder`` itself gives its layers."""
        return {name.removeprefix("encoder."): p for name, p in self.named_parameters()}

    def losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of each datum."""
        return F.cross_entropy(self(tokens).mT, targets, reduction="none").mean(1)


def torch_model(params: Params, config: Config) -> TorchModel:
    """torch's model with these weights, in float64 and evaluation mode."""
    model = TorchModel(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.units().items():
            parameter.copy_(params[name])
    return model


def tutorial_positions(d_model: int, context: int, kind: str = "sincos") -> Tensor:
    """The tutorial's ``PositionalEncoding``; the post's code has the sine in the odd columns too."""
    pe = torch.zeros(context, d_model, dtype=torch.float64)
    position = torch.arange(0, context, dtype=torch.float64).unsqueeze(1)
    div_term = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float64) * (-math.log(10000.0) / d_model))
    pe[:, 0::2] = torch.sin(position * div_term)
    pe[:, 1::2] = (torch.cos if kind == "sincos" else torch.sin)(position * div_term)[:, : d_model // 2]
    return pe
