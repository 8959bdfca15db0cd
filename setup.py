"""What setup.cfg cannot say: what follows from its one ``url``, and an sdist that is the same bytes each time."""

import gzip
import os
import re
import tarfile
import time
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent


def project_urls(url: str) -> dict[str, str]:
    """The addresses that an index shows, by name; none while there is no repository that others can see."""
    if not url:
        return {}
    pages = {"Documentation": "docs/index.md", "Changelog": "CHANGELOG.md", "Security": "SECURITY.md"}
    return {
        "Source": url,
        "Issues": f"{url}/issues",
        **{name: f"{url}/blob/main/{page}" for name, page in pages.items()},
    }


def long_description(readme: str, url: str, version: str) -> str:
    """The README with absolute links and pictures, of this version; as it is where there is no ``url``."""
    if not url:
        return readme

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link["picture"] else "blob"
        return f"{link['picture']}[{link['text']}]({url}/{kind}/v{version}/{link['target']})"

    return re.sub(r"(?P<picture>!?)\[(?P<text>[^]]*)\]\((?P<target>(?![a-z]+:|#)[^)]+)\)", absolute, readme)


class Sdist(sdist):
    """The files in order, with the time of SOURCE_DATE_EPOCH, and of nobody in particular."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None):  # noqa: ARG002
        """Called with format gztar, which is all that is made."""
        epoch = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))

        def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.uid, member.gid, member.uname, member.gname, member.mtime = 0, 0, "", "", epoch
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            return member

        path = f"{base_name}.tar.gz"
        with (
            open(path, "wb") as file,
            gzip.GzipFile("", "wb", mtime=epoch, fileobj=file) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            archive.add(base_dir, filter=plain)  # in the order of the names
        return path


if __name__ == "__main__":
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    version = re.search(r'^__version__ = "(.+)"$', (ROOT / "diffgradcam/__init__.py").read_text(), re.MULTILINE)[1]
    url = config["repository"]["url"].rstrip("/")
    setup(
        cmdclass={"sdist": Sdist},
        project_urls=project_urls(url),
        long_description=long_description((ROOT / "README.md").read_text("utf-8"), url, version),
    )
