"""Which process runs a command that takes one device."""

import pytest

from sslmodules.distributed import works_alone


@pytest.mark.parametrize(("rank", "size"), [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")])
def test_the_first_process_of_a_launcher_works_and_says_so(rank, size, monkeypatch, capsys):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert works_alone("evaluate")
    assert capsys.readouterr().out == ""
    monkeypatch.setenv(size, "2")
    monkeypatch.setenv(rank, "1")
    assert not works_alone("evaluate")
    assert capsys.readouterr().out == ""
    monkeypatch.setenv(rank, "0")
    assert works_alone("evaluate")
    assert capsys.readouterr().out.startswith("evaluate runs in one process, on ")


def test_of_several_devices_one_is_used_and_named(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert works_alone("evaluate")
    assert "on cuda:0; other devices" in capsys.readouterr().out
