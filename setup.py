from pathlib import Path

from setuptools import find_packages, setup

version: dict[str, str] = {}
exec(Path("editable_hf/version.py").read_text(encoding="utf-8"), version)

setup(
    name="editable_hf",
    version=version["__version__"],
    description="Editable Neural Networks (ICLR 2020) for Hugging Face models",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["editable_hf", "editable_hf.*"]),
    package_data={"editable_hf.hub": ["templates/*"]},
    entry_points={"console_scripts": ["editable-hf=editable_hf.cli:main"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.6",
        "transformers[sentencepiece]>=5.23",
        "datasets>=4.0",
        "accelerate>=1.10",
        "huggingface_hub>=1.0",
        "safetensors>=0.5",
        "pyarrow>=15",
        "pillow>=10",
        "sacrebleu>=2.4",
        "sentencepiece>=0.2",
        "sacremoses>=0.1",
        "evaluate>=0.4",
        "babel>=2.14",
        "num2words>=0.5.13",
        "numpy",
        "pyyaml",
        "tqdm",
    ],
    extras_require={
        "plots": ["matplotlib>=3.8"],
        "vision": ["scikit-learn>=1.4", "optuna>=5"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "ruff>=0.9",
            "matplotlib>=3.8",
            "scikit-learn>=1.4",
            "optuna>=5",
        ],
    },
)
