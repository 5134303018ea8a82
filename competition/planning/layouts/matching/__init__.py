"""Match images and masks: channels, versions, further masks, and the split into training and test."""
