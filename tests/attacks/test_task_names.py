"""The name of a task comes from a study: whoever publishes one chooses it, before anybody approved anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from quorate.errors import TaskMissingError
from quorate.study.task_digest import task_digest


@pytest.mark.parametrize("module", ["trap.inner", "trap.inner.deep", "trap.nothing"])
def test_reading_a_study_imports_nothing_that_the_study_names(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site compares digests when it lists studies. The packages around the module must not run for that."""
    deep = tmp_path / "trap" / "inner" / "deep"
    deep.mkdir(parents=True)
    sprung = tmp_path / "sprung"
    for folder in (deep, deep.parent, deep.parent.parent):
        (folder / "__init__.py").write_text(f"open({str(sprung)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    if module.endswith("nothing"):
        with pytest.raises(TaskMissingError):
            task_digest(f"flower:{module}:app")
    else:
        assert len(task_digest(f"flower:{module}:app")) == 64
    assert not sprung.exists()
    assert not [name for name in sys.modules if name.partition(".")[0] == "trap"]


@pytest.mark.parametrize(
    "name", ["flower::app", "flower:.:app", "flower:a..b:app", "flower:__main__:app", "flower:\x00:a"]
)
def test_a_name_that_is_no_module_is_a_missing_task(name: str) -> None:
    with pytest.raises(TaskMissingError):
        task_digest(name)
