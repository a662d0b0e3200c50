"""The main job on an embedded data set, in a few minutes on two cores."""
