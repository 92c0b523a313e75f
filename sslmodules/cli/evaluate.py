"""``sslmodules evaluate``."""

from lightning.pytorch import LightningDataModule

from sslmodules.as_trained import fill_in
from sslmodules.cli.arguments import with_class_names
from sslmodules.cli.going_on import with_paths
from sslmodules.cli.parser import function_parser
from sslmodules.distributed import works_alone
from sslmodules.evaluation.evaluate_command import evaluate


def run(name: str, args: list[str]) -> None:
    """Run ``sslmodules evaluate``."""
    parser = function_parser(name, evaluate)
    parser.add_argument("--ckpt", nargs="+", type=str, required=True, help="checkpoints, or published weights")
    parser.add_subclass_arguments(LightningDataModule, "data", required=True, help="labeled images")
    parser.add_subclass_arguments(LightningDataModule, "transfer", required=False, help="other labeled images")
    parser.add_subclass_arguments(LightningDataModule, "masks", required=False, help="images with masks")
    parser.add_subclass_arguments(LightningDataModule, "boxes", required=False, help="images with boxes")
    parser.add_function_arguments(evaluate, skip={"ckpt", "data", "transfer", "masks", "boxes"})
    parsed = parser.parse_args(with_paths(with_class_names(args)))
    parsed.pop("config")  # whose values are in place
    if not works_alone(name):
        return
    for data in (parsed.data, parsed.transfer):
        said = None if data is None else fill_in(data, parsed.ckpt)
        if said is not None:
            print(said)
    evaluate(**parser.instantiate(parsed).as_dict())
