"""Laws of typed tables: columns and types are the table's whatever the rows are, and no value is lost on the way."""

import numpy as np
import polars as pl
import pytest
import torch

from devinterp_func.show import results, schema
from devinterp_func.show.schema import BOOL, FLOAT, IDS, INT, NAME, Column, Table

KIND = Table(
    "All types.",
    "attribute.py",
    {
        "neuron": Column(NAME, "its name"),
        "p": Column(FLOAT, "of the trial", format="p"),
        "n": Column(INT),
        "token": schema.token("its token"),
        "notable": schema.tokens(),
        "chosen": Column(BOOL, control=True),
    },
    ("neuron",),
)
ROW = {"neuron": "a", "p": 0.5, "n": 3, "token": 1, "notable": [1, 2], "chosen": True}
TYPES = {"neuron": NAME, "p": FLOAT, "n": INT, "token": INT, "notable": IDS, "chosen": BOOL}
EMPTY = dict.fromkeys(ROW)
no_rows = pytest.mark.parametrize("rows", [[], {name: [] for name in ROW}, [EMPTY, EMPTY]])


@no_rows
def test_types_are_the_tables_also_without_rows_and_without_values(rows):
    assert dict(schema.frame(KIND, rows).schema) == TYPES


@no_rows
def test_types_survive_the_file(rows, tmp_path):
    frame = schema.frame(KIND, rows)
    results.write_table(tmp_path, "t", frame)
    found = results.read_table(tmp_path, "t", KIND)
    assert found.equals(frame) and dict(found.schema) == TYPES


def test_rows_columns_and_arrays_give_the_same_frame():
    columns = {name: [value] for name, value in ROW.items()}
    arrays = columns | {"p": torch.tensor([0.5]), "n": np.array([3]), "notable": torch.tensor([[1, 2]])}
    scalars = ROW | {"p": np.float32(0.5), "n": torch.tensor(3), "notable": torch.tensor([1, 2]), "chosen": np.True_}
    shuffled = dict(reversed(ROW.items()))
    forms: list = [columns, arrays, [scalars], [shuffled]]
    assert all(schema.frame(KIND, rows).rows(named=True) == [ROW] for rows in forms)


@pytest.mark.parametrize(
    ("name", "value"), [("p", "x"), ("n", 1.5), ("n", "3"), ("neuron", 3), ("notable", [1.5]), ("chosen", 2)]
)
def test_a_value_of_another_type_is_refused_not_lost(name, value):
    with pytest.raises(ValueError, match=f"'{name}' holds .*; .*{value if name != 'notable' else '1.5'}.* is not one"):
        schema.frame(KIND, [ROW | {name: value}])


def test_nan_and_null_are_two_things():
    assert schema.frame(KIND, [ROW | {"p": float("nan")}, ROW | {"p": None}])["p"].is_null().to_list() == [False, True]


def test_columns_that_differ_are_named():
    with pytest.raises(ValueError, match=r"the columns \['more', 'n'\] are missing or unknown; the table has"):
        schema.frame(KIND, [{("more" if name == "n" else name): value for name, value in ROW.items()}])
    with pytest.raises(ValueError, match="all must have the same"):
        schema.frame(KIND, [ROW, {"neuron": "b"}])


def test_require_names_what_differs_and_only_that():
    frame = schema.frame(KIND, [ROW])
    schema.require(frame, KIND, "t")
    schema.require(frame.select(reversed(frame.columns)), KIND, "t")
    with pytest.raises(ValueError, match=r"^t: the columns \['extra', 'n', 'p'\] are not as this version writes them"):
        schema.require(frame.drop("n").with_columns(pl.lit(1).alias("extra"), pl.col("p").cast(pl.Int64)), KIND, "t")
