"""DeepPose: a supervised pose regressor and its runs."""
