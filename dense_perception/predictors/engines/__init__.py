"""
What a trained network runs in: torch, or an inference engine where one is installed.

`engine` says what one is, the files `in_...` make one each, `cache` keeps what they built,
`choice` builds one by name or measures which is fastest (for this `machine`, `telling` that it
is at work), `engined` puts it where a predictor has
its network, `settings` is how its user asks for it `calibration`
what scales int8 and `first_runs` what judges an engine before the camera has sent an image.
"""
