"""birder-ray: score tens of millions of wildlife photos with pretrained birder networks, exactly once, on Ray Data."""
