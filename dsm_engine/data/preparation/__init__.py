"""Between sources and a tokenized dataset: blocks of rows, parts made of them by any number of
processes and machines, the choice among their documents, and the dataset they are joined to.

`plan` opens a recipe and `blocks` cuts its sources; `prepare` makes a block's part, `workers` many
at a time; `part` is the file of one and `parts_folder` the journal of those that stand; `resolve`
says row by row what is kept, and `mixture` how often; `assembly` writes the dataset.
"""
