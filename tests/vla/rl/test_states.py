"""States on disk: what goes in comes out, bit for bit, or is refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vla.core.errors import CorruptFileError, MissingAssetError
from vla.rl.states import load_state, save_state


def trained() -> tuple[nn.Module, torch.optim.Adam]:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1, betas=(0.8, 0.9))
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return network, optimizer


def test_an_optimizer_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    network, optimizer = trained()
    save_state(tmp_path / "s", {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "steps": 1})
    state = load_state(tmp_path / "s")
    other = nn.Linear(3, 2)
    again = torch.optim.Adam(other.parameters(), lr=0.5)
    other.load_state_dict(state["network"])
    again.load_state_dict(state["optimizer"])
    for each, its in ((network, optimizer), (other, again)):
        each(torch.full((1, 3), 2.0)).square().sum().backward()
        its.step()
    torch.testing.assert_close(other.state_dict(), network.state_dict(), rtol=0, atol=0)
    fresh = nn.Linear(3, 2)
    fresh.load_state_dict(state["network"])
    forgetful = torch.optim.Adam(fresh.parameters(), lr=0.1, betas=(0.8, 0.9))
    fresh(torch.full((1, 3), 2.0)).square().sum().backward()
    forgetful.step()
    assert (fresh.weight != network.weight).any(), "without its moments it would go elsewhere"


def test_every_kind_of_value(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    state = {
        "whole": 2**62,
        "share": 0.1,
        "none": None,
        "flag": True,
        "name": "co_rft",
        "pair": (1, [shared, shared.T]),
        "numbers": {0: torch.tensor(3), 7: {"x": torch.tensor([1.5], dtype=torch.float64)}},
    }
    save_state(tmp_path / "s", state)
    found = load_state(tmp_path / "s")
    assert found["pair"][0] == 1 and isinstance(found["pair"], tuple) and list(found["numbers"]) == [0, 7]
    torch.testing.assert_close(found["pair"][1], [shared, shared.T], rtol=0, atol=0)
    torch.testing.assert_close(found["numbers"], state["numbers"], rtol=0, atol=0)
    assert {key: found[key] for key in ("whole", "share", "none", "flag", "name")} == {
        key: state[key] for key in ("whole", "share", "none", "flag", "name")
    }


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Generator at /rng"):
        save_state(tmp_path / "s", {"rng": torch.Generator()})
    assert not list(tmp_path.glob("*")), "nothing is left of it"
    with pytest.raises(MissingAssetError):
        load_state(tmp_path / "s")
    save_state(tmp_path / "s", {"x": torch.ones(9)})
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:-4])
    with pytest.raises(CorruptFileError, match="cut short"):
        load_state(tmp_path / "s")
