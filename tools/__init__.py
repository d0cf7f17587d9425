"""What a person runs."""


def embedding_search():
    """The command `embedding-search` that pip installs: tools/search.py."""
    from data_prep.command import run

    def main():
        try:
            from tools import search
        except ModuleNotFoundError as error:
            raise ImportError(f"{error}; `pip install '<checkout>[search]'` installs what searching takes") from None
        return search.main()

    run("embedding-search", main)
