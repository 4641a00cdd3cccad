"""What differs between the classifier, the detector and the segmenter; everything else is shared."""
