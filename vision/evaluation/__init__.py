"""How good detections are: VOC and COCO mAP, and the report. Numpy only."""
