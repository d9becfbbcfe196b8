# Reads one field of a job on standard input. text.sh NAME
sed "s/.*\"$1\": *\"\{0,1\}\([^\",}]*\).*/\1/"
