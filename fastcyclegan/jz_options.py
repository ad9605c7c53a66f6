"""What becomes of options of junyanz/pytorch-CycleGAN-and-pix2pix that are not options here.

docs/options.md shows the same, and all of its other options, to people.
"""

_PREVIEWS = "previews are written into the run folder every --display_freq images"
_LOGS = "metrics are written to metrics.jsonl in the run folder; --track tensorboard shows them"
_HTML = "report.html is always written, about every 30 seconds"
_NEWEST = "leave it out: the newest checkpoint is continued; --init_from reads other weights"
_TRANSLATE = "it belongs to testing: see python -m fastcyclegan.translate --help"

# Flags of train.py and the words that say the same here.
MAPPED = {
    "continue_train": ("--resume", "auto"),
    "no_dropout": (),
}

# Options of train.py, newest and older, and what to do instead.
REMOVED = {
    "gpu_ids": "use --device cuda:0 or --device cpu",
    "which_direction": "use --direction",
    "which_model_netG": "use --netG",
    "which_model_netD": "use --netD",
    "loadSize": "use --load_size",
    "fineSize": "use --crop_size",
    "resize_or_crop": "use --preprocess",
    "niter": "use --n_epochs",
    "niter_decay": "use --n_epochs_decay",
    "no_lsgan": "use --gan_mode vanilla",
    "nThreads": "use --num_threads",
    "batchSize": "use --batch_size",
    "identity": "use --lambda_identity",
    "epoch_count": "leave it out: a resumed run knows its epoch",
    "epoch": _NEWEST,
    "which_epoch": _NEWEST,
    "load_iter": _NEWEST,
    "save_latest_freq": "use --save_every_steps",
    "save_by_iter": "leave it out: checkpoints are always numbered by step",
    "suffix": "write it into --name",
    "verbose": "leave it out: each weights file says how its network is built",
    "phase": "leave it out: training reads the train folders of --dataroot",
    "dataset_mode": "leave it out: two folders of unpaired images are the only data set kind here",
    "display_id": _PREVIEWS,
    "display_port": _PREVIEWS,
    "display_server": _PREVIEWS,
    "display_env": _PREVIEWS,
    "display_ncols": _PREVIEWS,
    "display_winsize": _PREVIEWS,
    "update_html_freq": _HTML,
    "no_html": _HTML,
    "use_wandb": _LOGS,
    "wandb_project_name": _LOGS,
    "lambda_L1": "it belongs to pix2pix, which is out of scope: images need no partners here",
    "results_dir": _TRANSLATE,
    "aspect_ratio": _TRANSLATE,
    "eval": _TRANSLATE,
    "num_test": _TRANSLATE,
    "how_many": _TRANSLATE,
    "model_suffix": _TRANSLATE,
}

# Values of --model.
REFUSED_MODELS = {
    "pix2pix": "out of scope: images need no partners here",
    "colorization": "out of scope: use two folders, and --input_nc 1",
    "test": "use python -m fastcyclegan.translate",
}

_READ_FROM_FILE = "leave it out: the file in --weights says how its network is built"
_KEPT_SIZE = "leave it out: the output has the size of the input"
_ALL = "leave it out: every image of --input is translated"
_RUN_FOLDER = "name the run folder in --weights"

# Options of test.py, and what to do instead.
REMOVED_FROM_TRANSLATE = {
    "dataroot": "use --input",
    "results_dir": "use --output",
    "name": _RUN_FOLDER,
    "checkpoints_dir": _RUN_FOLDER,
    "epoch": "name a file in --weights: a run folder means its newest weights",
    "which_epoch": "name a file in --weights: a run folder means its newest weights",
    "load_iter": "name a file in --weights: a run folder means its newest weights",
    "model_suffix": "use --direction, or name the file in --weights",
    "which_direction": "use --direction",
    "gpu_ids": "use --device cuda:0 or --device cpu",
    "num_test": _ALL,
    "how_many": _ALL,
    "phase": _ALL,
    "max_dataset_size": _ALL,
    "eval": "leave it out: nothing is dropped out when translating",
    "aspect_ratio": _KEPT_SIZE,
    "preprocess": _KEPT_SIZE,
    "resize_or_crop": _KEPT_SIZE,
    "load_size": _KEPT_SIZE,
    "crop_size": _KEPT_SIZE,
    "loadSize": _KEPT_SIZE,
    "fineSize": _KEPT_SIZE,
    "model": _READ_FROM_FILE,
    "netG": _READ_FROM_FILE,
    "which_model_netG": _READ_FROM_FILE,
    "norm": _READ_FROM_FILE,
    "ngf": _READ_FROM_FILE,
    "input_nc": _READ_FROM_FILE,
    "output_nc": _READ_FROM_FILE,
    "no_dropout": _READ_FROM_FILE,
    "dataset_mode": "leave it out: --input is a folder or a file",
}
