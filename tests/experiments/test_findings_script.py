"""The claims that the results begin with: read from the committed tables, and written where the page has their mark."""

import re

import claims
import findings
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import some

RESULTS = findings.Settings().folder
MARK = findings.BEGIN.format("claims")


def test_the_committed_page_says_what_the_tables_say():
    findings.main(findings.Settings(check=True))


def test_every_claim_is_told_in_a_section_of_the_page():
    titles = re.findall(r"^## (.+)$", (RESULTS / "README.md").read_text(), re.MULTILINE)
    told = [make(RESULTS) for make in claims.CLAIMS.values()]
    assert {claim.section for claim in told} <= set(titles)
    assert all(claim.control and claim.number and claim.tables for claim in told)
    assert len({claim.said for claim in told}) == len(told)


def test_a_page_that_says_something_else_is_an_error_and_is_not_written(tmp_path):
    before = f"# A page\n\n{MARK}| 0.99 |\n{findings.END}\nrest\n"
    (tmp_path / "README.md").write_text(before)
    with pytest.raises(ValueError, match="does not say what the tables say; run: python experiments/findings.py"):
        check(tmp_path, True)
    assert (tmp_path / "README.md").read_text() == before
    check(tmp_path, False)
    after = (tmp_path / "README.md").read_text()
    assert after.startswith(f"# A page\n\n{MARK}| | claim |") and after.endswith(f"|\n{findings.END}\nrest\n")
    check(tmp_path, True)


def check(folder, only):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "PARTS", {"claims": lambda _: claims.claims(RESULTS)})
        findings.main(findings.Settings(folder, only))


texts = st.text("ab\n|", max_size=9).map(lambda text: f"{text}\n")


@given(texts, texts, texts, texts)
@some
def test_filling_replaces_what_is_between_the_marks_and_nothing_else(head, old, new, rest):
    page = f"{head}{MARK}{old}{findings.END}{rest}"
    found = findings.filled(page, {"claims": new})
    assert found == f"{head}{MARK}{new}{findings.END}{rest}" == findings.filled(found, {"claims": new})


@pytest.mark.parametrize(
    ("page", "message"),
    [("no mark", "has 0 marks"), (MARK + MARK, "has 2 marks"), (MARK + "text", "no '<!-- end -->' follows")],
)
def test_a_page_without_its_marks_is_refused(page, message):
    with pytest.raises(ValueError, match=message):
        findings.filled(page, {"claims": ""})


def test_a_claim_is_read_from_one_row(tmp_path):
    pl.DataFrame({"a b": [1, 1, None], "x": [0.5, 0.25, 2.0]}).write_parquet(tmp_path / "t.parquet")
    assert claims.row(tmp_path, "t", x=0.25)["a b"] == 1 and claims.row(tmp_path, "t", a_b=None)["x"] == 2.0
    for of, n in (({"a_b": 1}, 2), ({"x": 7.0}, 0)):
        with pytest.raises(LookupError, match=f"t: {n} rows have"):
            claims.row(tmp_path, "t", **of)


def test_numbers_and_their_ends():
    found = {"x": 0.5, "low": 0.25, "high": 1.0, "x: low": 0.125, "x: high": 0.75}
    assert claims.within(found, "x") == "0.50 [0.25, 1.00]" and claims.share(found, "x", 0) == "50% [25%, 100%]"
    assert claims.within(found, "x", 3, "x: {}") == "0.500 [0.125, 0.750]"
    assert claims.spread(pl.Series([0.5, None, 0.25])) == "0.250 to 0.500"
    assert claims.anchor("Does the post's method work?") == "does-the-posts-method-work"
