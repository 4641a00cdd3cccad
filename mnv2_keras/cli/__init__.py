"""The command `mnv2`: each command parses, calls one public function, and prints."""
