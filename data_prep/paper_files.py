"""Where the paper's data sets are had: files, addresses, sizes, checksums; and the numbers that must come out."""

from collections.abc import Callable
from dataclasses import dataclass

from data_prep.download import Download
from data_prep.paper_lists import read_cars196, read_cub, read_sop


@dataclass(frozen=True)
class PaperSet:
    """A data set of the paper: the files that hold it, the lists inside them, and what must come out."""

    layouts: tuple[tuple[Download, ...], ...]  # ways to have it, each a group of files
    lists: tuple[frozenset[str], ...]  # the members that hold the annotations, a group for each way
    read: Callable  # {list name: content} -> {part: [Entry]}
    images: dict[str, int]  # published numbers, by part
    classes: dict[str, int]
    resize: str  # "plain" or "crop15"
    # For files whose own checksum nobody published, and unpacked folders: MD5 of single images, SHA-256 of lists. Of the
    # images of Cars196's two folders nobody published any: where all lists have a SHA-256 here, these decide.
    spots: dict[str, str]
    sums: dict[str, str]


KRAUSE = "https://ai.stanford.edu/~jkrause"
CVGL = "ftp.cs.stanford.edu/cs/cvgl"
SETS = {
    "cub": PaperSet(
        layouts=(
            (
                Download(
                    "CUB_200_2011.tgz",
                    (
                        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                        "https://data.caltech.edu/records/20098/files/CUB_200_2011.tgz",
                        "https://s3.amazonaws.com/fast-ai-imageclas/CUB_200_2011.tgz",
                        "https://drive.usercontent.google.com/download?id=1hbzc_P1FuxMkcabkgn9ZKinBwW683j45&export=download&confirm=t",
                        "http://www.vision.caltech.edu/visipedia-data/CUB-200-2011/CUB_200_2011.tgz",
                    ),
                    1150585339,
                    "sha256:0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
                ),
            ),
        ),
        lists=(frozenset(["images.txt", "image_class_labels.txt", "classes.txt"]),),
        read=read_cub,
        images={"train": 5864, "test": 5924},
        classes={"train": 100, "test": 100},
        resize="plain",
        spots={
            "images/001.Black_footed_Albatross/Black_Footed_Albatross_0001_796111.jpg": "4c84da568f89519f84640c54b7fba7c2",
            "images/002.Laysan_Albatross/Laysan_Albatross_0001_545.jpg": "e7db63424d0e384dba02aacaf298cdc0",
            "images/198.Rock_Wren/Rock_Wren_0001_189289.jpg": "487d082f1fbd58faa7b08aa5ede3cc00",
            "images/200.Common_Yellowthroat/Common_Yellowthroat_0003_190521.jpg": "96fd60ce4b4805e64368efc32bf5c6fe",
        },
        sums={
            "images.txt": "e1cfc5ed1f4bd1b838040784b6f75c44f7a25d9b31707a3adab49ec694618c1f",
            "image_class_labels.txt": "e9df8c96d897994a245746fe2c98914b9b31f5342bddc6e8b06bdfbf45e49b02",
        },
    ),
    "cars196": PaperSet(
        layouts=(
            (
                Download(
                    "car_ims.tgz",
                    (
                        f"{KRAUSE}/car196/car_ims.tgz",
                        "http://imagenet.stanford.edu/internal/car196/car_ims.tgz",
                        "https://huggingface.co/datasets/XiN0919/FGVC/resolve/921e8dce38536cd5982739d85d5e9235d2cb2a76/car_ims.tgz",
                    ),
                    1956628579,
                    "md5:d5c8f0aa497503f355e17dc7886c3f14",
                ),
                Download(
                    "cars_annos.mat",
                    (f"{KRAUSE}/car196/cars_annos.mat", "http://imagenet.stanford.edu/internal/car196/cars_annos.mat"),
                    394471,
                    "md5:b407c6086d669747186bd1d764ff9dbc",
                ),
            ),
            (Download("CARS196.zip", (f"http://{CVGL}/CARS196.zip", "ftp://cs.stanford.edu/cs/cvgl/CARS196.zip")),),
            (
                Download("cars_train.tgz", (f"{KRAUSE}/car196/cars_train.tgz",), 979269282, "md5:065e5b463ae28d29e77c1b4b166cfe61"),
                Download("cars_test.tgz", (f"{KRAUSE}/car196/cars_test.tgz",), 977350468, "md5:4ce7ebf6a94d07f1952d94dd34c4d501"),
                Download(
                    "car_devkit.tgz",
                    (f"{KRAUSE}/cars/car_devkit.tgz", "https://github.com/pytorch/vision/files/11644847/car_devkit.tgz"),
                    330960,
                    "md5:c3b158d763b6e2245038c8ad08e45376",
                ),
                Download(
                    "cars_test_annos_withlabels.mat",
                    (f"{KRAUSE}/car196/cars_test_annos_withlabels.mat",),
                    185758,
                    "md5:b0a2b23655a3edd16d84508592a98d10",
                ),
            ),
        ),
        lists=(
            frozenset(["cars_annos.mat"]),
            frozenset(["cars_train_annos.mat", "cars_test_annos_withlabels.mat", "cars_meta.mat"]),
            frozenset(["cars_train_annos.mat", "cars_test_annos.mat", "cars_annos.mat"]),  # the test's classes by box
        ),
        read=read_cars196,
        images={"train": 8054, "test": 8131},
        classes={"train": 98, "test": 98},
        resize="plain",
        spots={
            "car_ims/000001.jpg": "2d44a28f071aeaac9c0802fddcde452e",
            "car_ims/000002.jpg": "531fbde520bee33dcbfced6ae588c8f9",
            "car_ims/014981.jpg": "e7238ce05218a6e4dc92cda5e8971f17",
            "car_ims/014982.jpg": "b2a95af89329d32d5fe2b74f0922378e",
            "car_ims/016185.jpg": "bab296d5e4b2290d024920bf4dc23d07",
        },
        sums={
            "cars_annos.mat": "1cfb9206f1336038fc27c70a926e47d1c5d3ed0c870aec48cf5aa1b3880d42bf",
            "cars_train_annos.mat": "1c1973dd828a2964060b0bbc0e423466393fe3001a3f8e303f41fbf22067dfb1",
            "cars_test_annos.mat": "17a7837554437d4b58041cc2fc084ba46ccf315a1b5a3ee1264501ff68ca7c79",
            "cars_test_annos_withlabels.mat": "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
            "cars_meta.mat": "fe43dfda289448f97c25b09e09fafc0414e22fc4143831537780884a0a5f4a1a",
        },
    ),
    "sop": PaperSet(
        layouts=(
            (
                Download(
                    "Stanford_Online_Products.zip",
                    (
                        "ftp://cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
                        f"http://{CVGL}/Stanford_Online_Products.zip",
                        "https://drive.usercontent.google.com/download?id=1TclrpQOF_ullUP99wk_gjGN8pKvtErG8&export=download&confirm=t",
                    ),
                    3083860082,
                    "sha256:b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48",
                ),
            ),
        ),
        lists=(frozenset(["Ebay_train.txt", "Ebay_test.txt"]),),
        read=read_sop,
        images={"train": 59551, "test": 60502},
        classes={"train": 11318, "test": 11316},
        resize="crop15",
        spots={
            "bicycle_final/111265328556_0.JPG": "77420a4db9dd9284378d7287a0729edb",
            "chair_final/111182689872_0.JPG": "ce78d10ed68560f4ea5fa1bec90206ba",
            "table_final/111194782300_0.JPG": "8203e079b5c134161bbfa7ee2a43a0a1",
            "toaster_final/111157129195_0.JPG": "d6c24ee8c05d986cafffa6af82ae224e",
        },
        sums={
            "Ebay_train.txt": "77abb1e82af49f2f1f272dc6bd0b8480904f58742091764f9511b152cad1824e",
            "Ebay_test.txt": "63d559dc1ca1e03671224c58a26b18985bbff22ae20344d41dabcfe3873cc276",
        },
    ),
}
