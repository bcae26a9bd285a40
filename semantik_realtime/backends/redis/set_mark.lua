-- Set or remove the mark of a migration, if the one before it is still there.
--
-- KEYS  1: that of the mark
-- ARGV  1: "1": only if the mark is the next argument; "": whatever it is
--       2: a mark; "": none
--       3: the new mark; "": remove it
--       4: why the server is closed by it; "": it is not
-- Return 1, or 0 if it is another mark.
local mark = KEYS[1]
if ARGV[1] == '1' and (redis.call('HGET', mark, 'mark') or '') ~= ARGV[2] then return 0 end
if ARGV[3] == '' then
  redis.call('DEL', mark)
  return 1
end
redis.call('HSET', mark, 'mark', ARGV[3])
if ARGV[4] == '' then
  redis.call('HDEL', mark, 'closed')
else
  -- In the same step, for the scripts that write read only this one.
  redis.call('HSET', mark, 'closed', ARGV[4])
end
return 1
