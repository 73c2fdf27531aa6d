"""What is said of a cluster before anything runs on it."""

import socket
import sys
import threading
import time

import pytest

from paretune.cli import BAD_INPUT, main
from paretune.errors import PareError
from paretune.search.engines import Cluster, make_engine
from paretune.search.engines.rooms import refuse_without_room
from paretune.search.threads import threads_of
from tests.search.planted import Planted


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cpus": 0}, "--trial-cpus 0"),
        ({"gpus": -1}, "--trial-gpus -1"),
        ({"gpus": 1.5}, "--trial-gpus 1.5: give a share of one GPU such as 0.5, or whole ones"),
    ],
)
def test_shares_out_of_range(settings, said):
    with pytest.raises(PareError, match=said):
        Cluster("10.0.0.1:6379", **settings)


def test_a_trial_has_the_threads_of_its_cores():
    assert threads_of(8, Cluster(cpus=4)) == 4
    assert threads_of(1, Cluster(cpus=0.5)) == threads_of(1, "ray") == 1
    assert threads_of(1) is None


def test_an_unreachable_cluster_is_said_at_once(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    start = time.monotonic()
    with socket.socket() as taken, socket.socket() as silent:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        closed, mute = (f"127.0.0.1:{each.getsockname()[1]}" for each in (taken, silent))
        for address, said in [
            (closed, f"--address {closed}: no Ray cluster there .*ray start --head"),
            (mute, f"--address {mute}: no answer in 3 seconds"),
            (f"127.0.0.1:{other_server()}", "what answers there is no Ray cluster's head"),
            ("127.0.0.1:99999999", "no Ray cluster there"),
            ("ray://10.0.0.1:10001", "give HOST:PORT of the cluster's head"),
            ("auto", "give HOST:PORT"),
            (None, "--engine ray needs --address HOST:PORT"),
        ]:
            with pytest.raises(PareError, match=said):
                Cluster(address).probe()
    assert time.monotonic() - start < 20


def other_server():
    """The port of something that is no Ray."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()

    def answer():
        with server, server.accept()[0] as connection:
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    threading.Thread(target=answer, daemon=True).start()
    return server.getsockname()[1]


def node(cpus, gpus=0.0, alive=True):
    return {"Alive": alive, "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": cpus, "GPU": gpus}}


def test_shares_of_a_node_are_counted():
    third = Cluster(cpus=1, gpus=1 / 3)
    nodes = [node(8, 1), node(2, 4), node(64, 8, alive=False)]
    refuse_without_room(nodes, third, 5)
    with pytest.raises(PareError, match=r"room for 5 .*10\.0\.0\.1: 8 CPU 1 GPU, .*give --workers 5"):
        refuse_without_room(nodes, third, 6)
    refuse_without_room([node(1.5)], Cluster(cpus=0.5), 3)
    with pytest.raises(PareError, match="no node of the cluster has 4 CPU a trial"):
        refuse_without_room([node(3), node(3)], Cluster(cpus=4), 1)


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "paretune.search.engines.ray", raising=False)
    with pytest.raises(PareError, match=r"--engine ray needs Ray: pip install 'paretune\[ray\]'"):
        make_engine(Planted(tmp_path / "log"), "ray")


def test_the_options(tmp_path, capsys):
    words = f"front --model {tmp_path} --train t.jsonl --out {tmp_path}/run".split()
    for more, said in [
        (["--address", "10.0.0.1:6379"], "--address goes with --engine ray"),
        (["--trial-gpus", "1", "--engine", "workers"], "--trial-gpus goes with --engine ray"),
    ]:
        assert main([*words, *more]) == BAD_INPUT
        assert said in capsys.readouterr().err
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'paretune[ray]'")
    for more, said in [
        (["--address", "127.0.0.1:1"], "--address 127.0.0.1:1: no Ray cluster there"),
        (["--trial-cpus", "0"], "--trial-cpus 0"),
    ]:
        assert main([*words, "--engine", "ray", *more]) == BAD_INPUT
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
