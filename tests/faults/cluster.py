"""Three brokers that are one Kafka: every topic has three copies, and any one of them may be killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import KafkaError

from tests.brokers import START_SECONDS, Broker, BrokerError, _short_uuid
from tests.ports import own_port

NODES = 3


class Cluster(Broker):
    """Apache Kafka on three nodes, each broker and controller."""

    kind = "apache"
    restarts_with_data = True

    def __init__(self, home: Path) -> None:
        ports = [own_port() for _ in range(2 * NODES)]
        brokers, controllers = ports[:NODES], ports[NODES:]
        super().__init__(",".join(f"127.0.0.1:{port}" for port in brokers))
        self._home = home
        self._folder = Path(tempfile.mkdtemp(prefix="longwatch-cluster-"))
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        voters = ",".join(f"{n}@127.0.0.1:{port}" for n, port in enumerate(controllers, 1))
        cluster = _short_uuid()
        for node in range(1, NODES + 1):
            here = f"PLAINTEXT://127.0.0.1:{brokers[node - 1]}"
            properties = {
                "process.roles": "broker,controller",
                "node.id": node,
                "controller.quorum.voters": voters,
                "listeners": f"{here},CONTROLLER://127.0.0.1:{controllers[node - 1]}",
                "advertised.listeners": here,
                "controller.listener.names": "CONTROLLER",
                "inter.broker.listener.name": "PLAINTEXT",
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
                "log.dirs": self._folder / f"data-{node}",
                "auto.create.topics.enable": "false",
                "default.replication.factor": NODES,
                "min.insync.replicas": 2,
                "group.initial.rebalance.delay.ms": 0,
                "group.min.session.timeout.ms": 1000,
                "offsets.topic.replication.factor": NODES,
                "offsets.topic.num.partitions": 6,
                "transaction.state.log.replication.factor": NODES,
                "transaction.state.log.min.isr": 2,
                "transaction.state.log.num.partitions": 6,
                "broker.session.timeout.ms": 3000,  # how soon a killed broker's partitions get another leader
            }
            path = self._properties(node)
            path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
            command = [str(home / "bin/kafka-storage.sh"), "format", "-t", cluster, "-c", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=False)
            if done.returncode:
                raise BrokerError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")

    def start(self) -> None:
        """Start every node, and return when all three answer."""
        for node in range(1, NODES + 1):
            self.start_node(node)
        self._wait_until_it_answers()
        self.wait_for_copies([])

    def start_node(self, node: int) -> None:
        """Start one node; returns at once."""
        with (self._folder / f"{node}.log").open("ab") as log:
            self._processes[node] = subprocess.Popen(
                [str(self._home / "bin/kafka-server-start.sh"), str(self._properties(node))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env={**os.environ, "KAFKA_HEAP_OPTS": "-Xmx512m -Xms128m"},
                start_new_session=True,
            )

    def kill(self, node: int) -> None:
        """SIGKILL a node."""
        process = self._processes.pop(node)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)

    def close(self) -> None:
        for node in list(self._processes):
            self.kill(node)
        shutil.rmtree(self._folder, ignore_errors=True)

    def create_topic(self, name: str, partitions: int = 1) -> str:
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=15_000)
        try:
            admin.create_topics([NewTopic(name, partitions, NODES)])
        finally:
            admin.close()
        self.wait_for_copies([name])
        return name

    def wait_for_copies(self, topics: list[str]) -> None:
        """Return when all three nodes are there and hold every partition of these topics; BrokerError otherwise."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(KafkaError, KeyError):
                admin = KafkaAdminClient(bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=5_000)
                try:
                    nodes = len(admin.describe_cluster()["brokers"])
                    found = (
                        [p for topic in admin.describe_topics(topics) for p in topic["partitions"]] if topics else []
                    )
                    if nodes == NODES and all(len(p["isr_nodes"]) == NODES for p in found):
                        return
                finally:
                    admin.close()
            time.sleep(0.3)
        raise BrokerError(f"the cluster was not whole after {START_SECONDS:.0f} s; its logs: {self._folder}")

    def _properties(self, node: int) -> Path:
        return self._folder / f"{node}.properties"
