"""A tour of docker's everyday commands, made on Debian's dockerd and on nagayad side by side, with the same
docker command: what it prints, and how it ends, must be the same but for what is masked and listed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
from clients import have_dockerd
from dockerd import Dockerd
from house import DOCKER, House

pytestmark = pytest.mark.root

TOUR = """
docker version -f '{{.Server.Os}} {{.Server.Arch}} {{.Server.ApiVersion}}'
docker info -f '{{.OSType}} {{.NCPU}} {{.Driver}} {{.CgroupVersion}} {{.Swarm.LocalNodeState}}'
docker image inspect -f '{{.Os}} {{.Architecture}} {{json .Config.Cmd}} {{json .RepoTags}}' $I
docker image inspect nosuch
docker history -q nosuch
once $I echo hi
docker images
docker images -q nosuch
once $I sh -c 'echo out; echo err >&2; exit 3'
once $I nosuchprogram
once $I /etc
echo from stdin | docker run --rm -i --network none $I cat
once -e A=1 -e B= -w /tmp -u 7:8 -h box $I sh -c 'env | grep -v PATH | sort; pwd; id; hostname'
once --entrypoint /bin/echo $I entry point
once --read-only --tmpfs /t $I sh -c 'touch /x; touch /t/x; ls /t'
once --cap-drop ALL --cap-add CHOWN $I grep Cap /proc/self/status
once --memory 64m --pids-limit 50 $I cat /sys/fs/cgroup/memory/memory.limit_in_bytes
once --ulimit nofile=100:200 $I sh -c 'ulimit -Hn'
once --shm-size 1m $I df -k /dev/shm
once -v data:/d $I sh -c 'echo kept >/d/file'
once -v data:/d:ro $I sh -c 'cat /d/file; touch /d/x'
once --mount type=bind,src=/nosuchdirectory,dst=/x $I true
once --memory 1m $I true
docker run --rm --network nosuch $I true
docker run -d --name web --network none --label tier=front $I sh -c 'echo started; exec sleep 600'
docker run -d --name web $I true
docker ps
docker ps -q --no-trunc
docker ps --filter label=tier=front --format '{{.Names}} {{.Image}} {{.State}} {{.Labels}}'
docker ps --filter nosuch=1
docker run -d --name pub -p 127.0.0.1:8080:80 -p 127.0.0.1::9000/udp $I sleep 600
docker port pub
docker port pub 80
docker port pub 81
docker ps --filter name=pub --format '{{.Ports}}'
docker run -d -p 127.0.0.1:8080:80 --name taken $I true
docker rm -f pub taken
docker run --rm $I sh -c 'ip -o -4 addr show eth0 | wc -l; ip route | grep -c default'
docker port web
docker inspect -f '{{.State.Status}} {{.RestartCount}} {{.Config.Image}} {{json .Config.Cmd}}' web
docker inspect -f '{{json .Config.Labels}} {{.HostConfig.NetworkMode}} {{.HostConfig.RestartPolicy.Name}}' web
docker inspect nosuch
docker logs web
docker logs --tail 0 web
docker logs -t web
docker logs nosuch
docker exec web echo inside
docker exec -u 7 -w /tmp -e X=y web sh -c 'id -u; pwd; echo $X'
docker exec web sh -c 'exit 9'
docker exec web nosuchprogram
docker exec nosuch true
docker top web -o pid,args
docker stats --no-stream --format '{{.Name}} {{.PIDs}}' web
echo content >$HOME/file; docker cp $HOME/file web:/tmp/file; docker exec web cat /tmp/file
docker cp web:/tmp/file - | tar t
docker cp web:/nosuch -
docker diff web
docker export web | tar t | grep -c tmp/file
docker pause web; docker ps --format '{{.Status}}'
docker exec web true
docker pause web
docker unpause web
docker unpause web; true
docker rename web shop; docker ps --format '{{.Names}}'
docker rename nosuch other
docker update --memory 64m --memory-swap 128m shop; docker inspect -f '{{.HostConfig.Memory}}' shop
docker update --memory 1 shop
docker restart -t 0 shop; docker inspect -f '{{.State.Running}}' shop
docker rm shop
docker stop -t 0 shop; docker inspect -f '{{.State.Status}} {{.State.ExitCode}}' shop
docker ps -a --format '{{.Names}} {{.State}}'
docker start shop
docker kill -s USR9 shop
docker kill shop; docker wait shop
docker kill shop
docker rm shop
docker rm -f nosuch
docker rm nosuch
docker create --name made --network none $I sh -c 'echo ran; exit 4'
docker start -a made; docker inspect -f '{{.State.ExitCode}}' made
docker start nosuch
docker volume ls
docker volume create --label a=b named
docker volume inspect -f '{{.Name}} {{.Driver}} {{json .Labels}} {{json .Options}}' named
docker volume create --opt size=1m limited
docker volume create --opt type=tmpfs broken
docker volume rm nosuch
docker run -d --name user --network none -v named:/n $I sleep 600
docker volume rm named
docker rm -f user; docker volume rm named
docker tag $I second:v1; docker images --format '{{.Repository}}:{{.Tag}}' | sort
docker tag nosuch second
docker rmi second:v1
docker rmi nosuch
docker save $I | tar t | grep -c manifest.json
docker save $I | docker load
docker network ls --format '{{.Name}} {{.Driver}} {{.Scope}}'
docker network inspect -f '{{.Name}} {{.Driver}} {{.Internal}}' none
docker network inspect nosuch
docker network rm none
docker network rm nosuch
docker network create --label a=b --subnet 10.231.9.0/24 lan
docker network create lan
docker network create --subnet 10.231.9.0/24 other
docker network ls --filter label=a=b --format '{{.Name}} {{.Driver}}'
docker network inspect -f '{{(index .IPAM.Config 0).Subnet}} {{.Internal}} {{json .Labels}}' lan
docker run -d --name plug --network lan --ip 10.231.9.7 $I sleep 600
docker inspect -f '{{.NetworkSettings.Networks.lan.IPAddress}}' plug
docker network rm lan
docker network connect lan plug
docker network disconnect lan plug
docker network disconnect lan plug
docker rm -f plug; docker network rm lan
docker node ls
docker service ls
docker swarm leave
docker plugin ls
docker container prune -f
docker volume prune -f
docker network prune -f
docker image prune -f
docker system prune -f
docker system df --format '{{.Type}} {{.TotalCount}} {{.Active}}'
docker ps -a
""".strip().splitlines()


SHORT = 'I=nagaya/busybox; once() { docker run --rm --network none "$@"; }'


class Difference(NamedTuple):
    """Where dockerd 20.10 says `theirs` we say `ours`; status: ours, where it is another one."""

    why: str
    theirs: str
    ours: str
    status: int | None = None


RUNC = (
    "failed to create shim task: oci runtime create failed: runc create failed: "
    "unable to start container process: "
)
DIFFERENCES: dict[str, Difference] = {
    "docker image inspect nosuch": Difference(
        "newer dockerds name it once", "no such image: nosuch: no such image", "no such image"
    ),
    "once $I nosuchprogram": Difference(
        "newer dockerds' words",
        RUNC,
        f"failed to create task for container: {RUNC}",
    ),
    "once $I /etc": Difference(
        "newer dockerds' words, and newer runcs'",
        f'{RUNC}exec: "/etc": permission denied',
        f'failed to create task for container: {RUNC}exec: "/etc": is a directory',
    ),
    "docker exec web nosuchprogram": Difference(
        "newer dockerds end the exec with 127, and say why by the error stream", "", "", 127
    ),
}

MASKS = (
    (r"/tmp/nagt-[^/ :]+/root", "ROOT"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
    (r"\b[0-9a-f]{64}\b", "ID"),
    (r"\b[0-9a-f]{12}\b", "SHORT"),
    (r"(\d+|a|an|About a|About an|Less than a) (second|minute|hour|year)s?", "AGE"),
    (r"(?m)^\d{2,7} ", "PID "),
    (r"127\.0\.0\.1:\d{5}", "PORT"),
    (r"\b\d+(\.\d+)?[kMG]?B\b", "SIZE"),
    (r"[ \t]+", " "),
)


class Said(NamedTuple):
    """What a command answered, masked."""

    status: int
    out: str
    err: str


def masked(text: str) -> str:
    """Without what is another every time, and without capitals: dockerd's came and went."""
    for pattern, mark in MASKS:
        text = re.sub(pattern, mark, text)
    if "daemon: " in text:
        text = text.lower()
    return "\n".join(line.rstrip() for line in text.splitlines())


def travel(server: Dockerd | House) -> dict[str, Said]:
    """All commands, one after the other."""
    found = {}
    for line in TOUR:
        done = subprocess.run(
            server.inside(["sh", "-c", f"{SHORT}; {line}"]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            env={
                **server.environment,
                "PATH": f"{DOCKER.rpartition('/')[0]}:/usr/sbin:/usr/bin:/sbin:/bin",
                "DOCKER_API_VERSION": "1.41",
                "DOCKER_CLI_HINTS": "false",
            },
        )
        found[line] = Said(done.returncode, masked(done.stdout.decode()), masked(done.stderr.decode()))
    return found


@pytest.fixture(scope="module")
def tours() -> Iterator[tuple[dict[str, Said], dict[str, Said]]]:
    if not have_dockerd():
        pytest.skip("no dockerd here")
    with Dockerd(bip="10.231.8.1/24") as peer, House() as house, ThreadPoolExecutor(2) as pool:
        theirs, ours = pool.map(travel, (peer, house))
        yield theirs, ours


@pytest.mark.parametrize("line", TOUR)
def test_the_same(tours: tuple[dict[str, Said], dict[str, Said]], line: str) -> None:
    theirs, ours = (tour[line] for tour in tours)
    known = DIFFERENCES.get(line)
    if known is not None:
        assert theirs != ours, "a difference that is none any more"
        assert known.theirs in theirs.out + theirs.err
        theirs = Said(
            theirs.status if known.status is None else known.status,
            theirs.out.replace(known.theirs, known.ours),
            theirs.err.replace(known.theirs, known.ours),
        )
        if known.status is not None:  # and what is said goes another way
            theirs, ours = (said._replace(out="", err=said.out + said.err) for said in (theirs, ours))
    assert ours == theirs


def test_every_difference_is_of_the_tour() -> None:
    assert set(DIFFERENCES) <= set(TOUR)
