from pathlib import Path

from setuptools import find_packages, setup

version: dict[str, str] = {}
exec(Path("editable_hf/version.py").read_text(encoding="utf-8"), version)

PLOTS = ["matplotlib>=3.9,<4"]
DOCS = ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.30,<2"]
VISION = ["scikit-learn>=1.6,<2", "optuna>=5,<6"]
PEFT = ["peft>=0.21.2,<1"]
EXPORT = ["ctranslate2>=4.8,<5", *PEFT]
TERMS = ["translate-toolkit>=3.20,<4"]  # reads glossaries in TBX and PO
TESTS = [
    "pytest>=8.4,<10",
    "pytest-timeout>=2.4,<3",
    "pytest-xdist>=3.6,<4",
    "hypothesis>=6.100,<7",
    "ruff>=0.15,<1",
    "babel>=2.14,<3",  # this and the next make the embedded corpus anew
    "num2words>=0.5.13,<1",
]

setup(
    name="editable_hf",
    version=version["__version__"],
    description="Editable Neural Networks (ICLR 2020) for Hugging Face models",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["editable_hf", "editable_hf.*"]),
    package_data={
        "editable_hf": ["py.typed"],
        "editable_hf.patches": ["templates/*"],
        "editable_hf.review": ["templates/*"],
        "editable_hf.data": ["embedded_corpus/*", "embedded_facts/*"],
    },
    entry_points={"console_scripts": ["editable-hf=editable_hf.cli:main"]},
    python_requires=">=3.11",
    # CI runs the lower bounds (constraints/oldest.txt), constraints/tested.txt and the newest releases.
    install_requires=[
        "torch>=2.9.1,<3",
        "transformers[sentencepiece]>=5.21,<6",
        "datasets>=4.0,<6",
        "accelerate>=1.12,<2",
        "huggingface_hub>=1.31,<3",
        "safetensors>=0.8,<1",
        "pyarrow>=21",
        "pillow>=11.1",
        "sacrebleu>=2.4.3,<3",
        "sentencepiece>=0.2.1,<1",
        "sacremoses>=0.1.1,<1",
        "evaluate>=0.4.6,<1",
        "numpy>=2.1,<3",
        "packaging>=23",
        "pyyaml>=6.0.2,<7",
        "tokenizers>=0.23.3,<1",
        "tqdm>=4.67,<5",
    ],
    extras_require={
        "plots": PLOTS,
        "vision": VISION,
        "peft": PEFT,
        "export": EXPORT,
        "terms": TERMS,
        "docs": DOCS,
        "dev": [*TESTS, *PLOTS, *VISION, *EXPORT, *TERMS, *DOCS],
    },
)
