"""Prints as JSON what weights predict for a photo, and which of the slow modules were imported for it."""

import json
import sys

from mnv2_keras import Classifier

predictions = Classifier(sys.argv[1]).predict(sys.argv[2])
print(json.dumps([predictions, sorted({"tensorflow", "keras", "pooch"} & set(sys.modules))]))
