"""From a video file to clip features. Imports `data`; torch only where a net runs."""
