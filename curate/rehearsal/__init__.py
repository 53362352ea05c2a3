"""Rehearsal: any pipeline from end to end at a small size, and the bill of the real run.

    curate run r1-zero --rehearse --gpu h100

The real code of every stage runs on tiny random models, a few problems and a few steps, in a
temporary warehouse. Errors that would stop the real run after hours appear here, with the stage and
the remedy. The bill says what the real run needs: tokens, FLOPs, GPU hours, memory, disk and money.
"""
