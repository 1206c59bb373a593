"""A polite crawler: a durable frontier, a careful fetcher, manners, and the text of pages.

Who calls whom, from the outside in:

    crawl (the source), harvest + sinks (livelm crawl)      one process: the run's, or the command's
      workers, channel                                      starts worker processes, listens to them, ends them
        worker                                              one process and one loop for a share of the sites
          frontier (_sites _seen _limits _store _inbox)     which address comes next; what is finished, on disk
          visit, hosts, turns, black_box                    one visit: whose turn, how long to wait, what killed us
            robots, optout                                  who does not want to be crawled or learned from
            fetch, connect, address, decode                 one answer: checked addresses, bounded bodies
            reading, page, markup, sitemap                  links and main text out of one body
            filters, duplicates, shingles                   which texts are worth learning from, and why not
    urls, item, crawl_settings                              what all of them speak of
"""
