"""Match images and masks: channels, versions, several masks of an image, and the split into training and test."""
