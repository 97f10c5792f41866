"""daemon/gpu/process_tree.py: a worker's memory is that of all processes that it has started."""

from __future__ import annotations

import json
import subprocess
import sys

MIB = 1 << 20
#: Measures itself while it has a child, a grandchild of a thread, and a fork that shares 64 MiB with it.
_MEASURE = """
import json, os, subprocess, sys, threading, time
sys.path[:0] = json.loads(sys.argv[1])
from glmtts.daemon.gpu import process_tree
from glmtts.daemon.gpu.process_tree import ProcessTree, descendants
process_tree._LISTED_S = 0
mine = bytearray(os.urandom(1 << 20) * 64)
tree = ProcessTree()
figures = [tree.rss()]
hold = "import sys; x = bytearray(b'x' * (32 << 20)); print(flush=True); sys.stdin.read()"
inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
children = []
def start(code):
    children.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    children[-1].stdout.readline()
start(hold)
figures.append(tree.rss())
thread = threading.Thread(target=start, args=(inner,))
thread.start()
thread.join()
figures.append(tree.rss())
count = len(descendants(os.getpid()))
read, write = os.pipe()
if not (fork := os.fork()):
    os.close(write)
    os.read(read, 1)
    os._exit(0)
figures += [tree.rss(), tree.rss()]
os.close(write)
os.waitpid(fork, 0)
for child in children:
    child.stdin.close()
    child.wait()
print(json.dumps({"figures": figures, "count": count, "left": descendants(os.getpid())}))
"""


def test_children_count_whole_and_forks_by_their_part() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, json.dumps(sys.path)], capture_output=True, timeout=60, check=True
    )
    answer = json.loads(done.stdout)
    alone, with_child, with_grandchild, with_fork, again = answer["figures"]
    assert alone >= 64 * MIB
    assert with_child - alone >= 32 * MIB
    assert with_grandchild - with_child >= 32 * MIB and answer["count"] == 3
    # The fork holds 64 MiB together with its parent: half of that is its part.
    assert with_fork - with_grandchild < 60 * MIB
    assert abs(again - with_fork) < 4 * MIB
    assert answer["left"] == []
