# Columns: case, thousand messages per second: median, smallest, largest; one block for
# each contender.

set terminal svg size 820,380 font 'Helvetica,Arial,sans-serif,14' background '#ffffff'
set output image

set title "{/:Bold Thousand messages of 200 bytes per second, to RabbitMQ}" font ',17'
set border 3 lc rgb '#555555'
set tics nomirror out textcolor rgb '#333333'
set grid ytics lc rgb '#e4e4e4' lt 1
set yrange [0:*]
set key outside bottom center horizontal reverse Left samplen 2
set style data histograms
set style histogram errorbars gap 1 lw 1
set style fill solid 0.9 noborder
set boxwidth 0.9
set errorbars 0.3 lw 1 lc rgb '#555555'

plot data index 0 using 2:3:4:xtic(1) title 'outbox' lc rgb '#1764ab', \
	data index 1 using 2:3:4 title 'Node by hand' lc rgb '#d2691e', \
	data index 2 using 2:3:4 title 'PgQ' lc rgb '#7a9a3c', \
	data index 3 using 2:3:4 title 'Python by hand' lc rgb '#c9a227', \
	data index 4 using 2:3:4 title 'pg-transactional-outbox' lc rgb '#8c6d8c'
