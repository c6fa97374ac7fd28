import subprocess
import sys

import pytest

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


def test_the_code_of_the_readme_runs(server: NatsServer) -> None:
    readme = (WORKSPACE / "bindings" / "python" / "README.md").read_text()
    # Those that need RabbitMQ as well are run in test_sidecar.py.
    blocks = [code for code in readme.split("```python\n")[1:] if ":5672" not in code]
    assert len(blocks) > 4
    assert any("asyncio.run(" in code for code in blocks)
    # Whoever tries it tries it again.
    for code in [blocks[0], *blocks]:
        script = code.split("```")[0].replace("nats://127.0.0.1:4222", server.url)
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
        assert (ran.returncode, ran.stderr) == (0, ""), script
