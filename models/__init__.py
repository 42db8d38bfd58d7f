"""What is learned, and how. Nothing here knows Kafka, a clock or a file.

Compiled functions are kept between runs. numba renews one when its own file changes, not when one that it calls does,
so they lie in a folder named by the digest of all that could be called: new sources never meet old machine code.
"""

from hashlib import blake2b
from pathlib import Path

from numba.core import config as _numba

_here = Path(__file__).parent
_sources = blake2b(digest_size=8)
for _source in sorted(_here.rglob("*.py")):
    _sources.update(_source.read_bytes())
_folder = Path(_numba.CACHE_DIR or _here / "__pycache__") / f"compiled-{_sources.hexdigest()}"  # type: ignore[attr-defined]
# Where this cannot be written, numba looks for another place. Its settings have no declared types.
_numba.CACHE_DIR = str(_folder)  # type: ignore[attr-defined]
