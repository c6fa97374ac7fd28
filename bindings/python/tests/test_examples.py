import subprocess
import sys

import pytest

from rabbit import RabbitMq
from server import WORKSPACE, NatsServer

EXPECTED = """\
stored at HELLO/1, sent again: duplicate=True
attempt 1: order 17
attempt 1: order 18, which nobody can handle
attempt 2: order 18, which nobody can handle
attempt 3: order 18, which nobody can handle
given up, kept at HELLO_DLQ/1
"""


@pytest.mark.parametrize("example", ["hello.py", "hello_aio.py"])
def test_hello_does_what_it_says(server: NatsServer, example: str) -> None:
    file = WORKSPACE / "examples" / "python" / example
    ran = subprocess.run([sys.executable, file, server.url], capture_output=True, text=True, timeout=30, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, EXPECTED, "")


def test_the_code_of_the_readme_runs(server: NatsServer, rabbit: RabbitMq) -> None:
    readme = (WORKSPACE / "bindings" / "python" / "README.md").read_text()
    for code in readme.split("```python\n")[1:]:
        script = code.split("```")[0].replace("nats://127.0.0.1:4222", server.url)
        script = script.replace("amqp://guest:guest@127.0.0.1:5672/%2f", rabbit.fresh_vhost())
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
        assert (ran.returncode, ran.stderr) == (0, ""), script
