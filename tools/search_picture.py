"""A picture of the search page, as a browser shows it.

    .venv/bin/python tools/search_picture.py --model runs/demo/lifted_64/seed1 --out runs/figures/search.png

Needs an index (tools/search.py index), and Chromium or Chrome. Fails where the page says that a search went wrong.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import tempfile
import threading

from data_prep.files import require_writable, user_path
from tools.check_report import BROWSERS, DECODED, Browser, find_browser
from tools.search import TOP, open_search
from tools.search_server import Server

WIDTH = 900  # pixels: ten images fill two rows
SEARCHED = """new Promise((done, failed) => {
  const look = () => found.children.length || says.className ? done(says.className && says.innerText) : setTimeout(look, 50);
  look();
})"""


def take_picture(browser, address, index, image, out):
    """Search on the page at `address` with `image`, or with the first image of the index, and write a picture of it to `out`."""
    browser.open(address if image else f"{address}#{min(index.files)}", WIDTH)
    if image:
        browser.choose_file("#file", image)
    if wrong := browser.evaluate(SEARCHED):
        raise ValueError(wrong)
    browser.evaluate(DECODED)
    browser.shoot(out, WIDTH, browser.evaluate("Math.ceil(document.querySelector('main').offsetHeight)"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=user_path, required=True, help="model folder with its index")
    parser.add_argument("--index", type=user_path, help="index folder (default <model>/index)")
    parser.add_argument("--image", type=user_path, help="image to search with (default the first of the index)")
    parser.add_argument("--out", type=user_path, required=True, help="picture to write, .png")
    parser.add_argument("--browser", help=f"program to open it with (default the first there of {', '.join(BROWSERS)})")
    arguments = parser.parse_args()
    require_writable(arguments.out)
    if arguments.image and not arguments.image.is_file():
        raise ValueError(f"{arguments.image}: no such file")
    program = find_browser(arguments.browser)
    embedder, index = open_search(arguments.model, arguments.index)
    with Server(embedder, index, "127.0.0.1", 0, TOP) as server, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = Browser(program, home)
        try:
            take_picture(browser, f"http://127.0.0.1:{server.server_port}/", index, arguments.image, arguments.out)
        finally:
            browser.close()
            server.shutdown()
    print(f"{arguments.out}: drawn")


if __name__ == "__main__":
    run("search_picture", main)
