"""Listing a class-folder tree: which files are images, and which class each belongs to."""

import os
from collections import Counter

from bitfast.data.decode import shown
from bitfast.errors import DataError

SUFFIXES = frozenset(".jpg .jpeg .jpe .png .bmp .tif .tiff .webp .ppm .pgm .gif .avif".split())
TRAIN = "train"
VALIDATION = ("val", "valid", "validation", "test")
STRAY = "images outside the class folders"
HIDDEN = "hidden files and system litter"

_JUNK = frozenset(("__macosx", "thumbs.db", "desktop.ini"))


def entries(folder):
    """(folders, files) of one folder: names in Unicode order, hidden ones and system litter left out.

    Links are followed; a broken link counts as a file, so that the scan names it.
    Raises:  DataError if the folder does not exist, is a file, or cannot be listed
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                if is_litter(entry.name):
                    continue
                is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
                (folders if is_folder else files).append(entry.name)
    except FileNotFoundError:
        raise DataError(f"{shown(folder)}: no such folder: check the path") from None
    except NotADirectoryError:
        raise DataError(
            f"{shown(folder)} is a file, not a folder: give the folder that holds one sub-folder per class"
        ) from None
    except OSError as error:
        raise DataError(
            f"{shown(folder)}: cannot list this folder ({error.strerror.lower()}): make it readable (chmod +rx)"
        ) from error
    return sorted(folders), sorted(files)


def is_litter(name):
    """Whether a file or folder name is hidden or what an operating system leaves behind."""
    return name.startswith(".") or name.casefold() in _JUNK


def hidden_below(root):
    """How many files and folders below a folder are left out as hidden or system litter; a folder counts once."""
    count = 0
    for _, folders, files in os.walk(root):
        count += sum(map(is_litter, folders + files))
        folders[:] = (name for name in folders if not is_litter(name))
    return count


def is_image(name):
    """Whether the suffix, in any case, is one that all loaders read."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def split_folders(root):
    """(train, validation) folders below root, or (None, None) for a bare class tree; validation may be None.

    A folder named train is a split, not a class, when a validation folder stands beside it, or it is alone, or no
    image lies directly in it. Of several validation folders the first in the order of VALIDATION is taken.
    """
    names = {name.casefold(): name for name in entries(root)[0]}
    if TRAIN not in names:
        return None, None
    train = os.path.join(root, names[TRAIN])
    validation = next((os.path.join(root, names[name]) for name in VALIDATION if name in names), None)
    if validation or len(names) == 1 or not any(map(is_image, entries(train)[1])):
        return train, validation
    return None, None


def list_classes(root, ignored, *, allow_empty=False):
    """(paths, class names), one each per image of a class-folder tree, classes and files in Unicode order.

    The class is the first level below root; deeper folders are searched too. `ignored` (a Counter) gains the suffixes
    of files that are not images, and STRAY images that lie beside the class folders.
    Raises:  DataError if there is no class folder, no image, or (unless allow_empty) a class folder without images
    """
    folders, files = entries(root)
    stray = sum(map(is_image, files))
    if not folders:
        what = f"no class folders, the images lie directly in it ({stray})" if stray else "no images, no class folders"
        raise DataError(f"{shown(root)}: {what}: put the images of each class into a sub-folder named after the class")
    if stray:
        ignored[STRAY] += stray
    paths, names, empty = [], [], []
    for name in folders:
        unsupported = Counter()
        found = list(_images_below(os.path.join(root, name), unsupported, set()))
        if not found:
            empty.append((name, unsupported))
        ignored.update(unsupported)
        paths += found
        names += [name] * len(found)
    if not paths:
        raise DataError(
            f"{shown(root)}: no images in its {len(folders)} folders{_found_instead(ignored)}: "
            f"supported are {' '.join(sorted(suffix[1:] for suffix in SUFFIXES))}"
        )
    if empty and not allow_empty:
        name, unsupported = empty[0]
        others = f" ({len(empty)} folders like this)" if len(empty) > 1 else ""
        raise DataError(
            f"class folder {shown(os.path.join(root, name))} has no images{_found_instead(unsupported)}{others}: "
            "add images or delete the folder, or go without it with --allow-empty"
        )
    return paths, names


def images_below(root):
    """Paths of all images below a folder, depth first, in Unicode order."""
    return list(_images_below(root, Counter(), set()))


def _images_below(folder, unsupported, seen):
    """Image paths below a folder, depth first; `seen` stops at links that lead back."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    folders, files = entries(folder)
    for name in files:
        if is_image(name):
            yield os.path.join(folder, name)
        else:
            unsupported[os.path.splitext(name)[1].lower() or "(no suffix)"] += 1
    for name in folders:
        path = os.path.join(folder, name)
        found = _images_below(path, unsupported, seen)
        first = next(found, None)
        if first is not None:
            yield first
            yield from found
        elif is_image(name):  # a folder in the place of an image; the scan names it
            yield path


def _found_instead(unsupported):
    listed = ", ".join(f"{count} {shown(suffix)}" for suffix, count in unsupported.most_common(3))
    return f" ({listed} ignored)" if listed else ""
